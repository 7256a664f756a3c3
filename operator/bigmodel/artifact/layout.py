"""Paths of an artefact. Keys are relative to the store's URI, with slashes; files are relative to the artefact's own
directory.

<store>/<namespace>/<job>/<uid>/artifact/<digest hex>/
  manifest.json                       committed last, create-only: an artefact without it does not exist
  model/{weights.safetensors, program.pt2, golden/*.safetensors}        the variant `default`, the model as trained
  variants/<name>/{…}                                                   the same for every other variant
"""

MANIFEST = "manifest.json"
PROGRAM = "program.pt2"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden"
DEFAULT_VARIANT = "default"


def artifact_key(namespace: str, job: str, uid: str, digest: str) -> str:
    """The artefact's directory below the store. `digest` is `sha256:<hex>`."""
    return f"{namespace}/{job}/{uid}/artifact/{digest.removeprefix('sha256:')}"


def variant_directory(variant: str) -> str:
    return "model" if variant == DEFAULT_VARIANT else f"variants/{variant}"


def join(uri: str, key: str) -> str:
    """The URI of a key below a store or directory URI."""
    return f"{uri.rstrip('/')}/{key}"
