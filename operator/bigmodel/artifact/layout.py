"""Paths of artefacts and checkpoints. Keys are relative to the store's URI, with slashes; files are relative to the
artefact's or checkpoint's own directory.

<store>/<namespace>/<job>/<uid>/artifact/<digest hex>/
  manifest.json                       committed last, create-only: an artefact without it does not exist
  model/{weights.safetensors, program.pt2, golden/*.safetensors}        the variant `default`, the model as trained
  variants/<name>/{…}                                                   the same for every other variant
<store>/<namespace>/<job>/<uid>/checkpoint/<attempt>.<generation>/<step>/
  manifest.json                       committed last, create-only, by rank 0 of that generation; without it: torn
  rank-<rank>.bin                     tensors as raw bytes; which and where is in the manifest
"""

MANIFEST = "manifest.json"
PROGRAM = "program.pt2"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden"
DEFAULT_VARIANT = "default"


def artifact_key(namespace: str, job: str, uid: str, digest: str) -> str:
    """The artefact's directory below the store. `digest` is `sha256:<hex>`."""
    return f"{namespace}/{job}/{uid}/artifact/{digest.removeprefix('sha256:')}"


def checkpoints_key(namespace: str, job: str, uid: str) -> str:
    """The directory of all checkpoints of a job, below the store."""
    return f"{namespace}/{job}/{uid}/checkpoint"


def checkpoint_path(attempt: int, generation: int, step: int) -> str:
    """One checkpoint's directory below `checkpoints_key`. Each generation has its own: a late writer of an earlier one
    can touch nothing of a later one.
    """
    return f"{attempt}.{generation}/{step}"


def shard_file(rank: int) -> str:
    return f"rank-{rank}.bin"


def variant_directory(variant: str) -> str:
    return "model" if variant == DEFAULT_VARIANT else f"variants/{variant}"


def join(uri: str, key: str) -> str:
    """The URI of a key below a store or directory URI."""
    return f"{uri.rstrip('/')}/{key}"
