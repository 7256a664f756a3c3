"""Container images without a registry: built by buildah from images/, copied into the nodes' containerd.

An image is known by the hash of everything it was made from, and so nothing is built or copied twice: not for a second
checkout, not for a second cluster. `images/<name>/Containerfile` is built with the repository as its context; where
there is an `images/<name>/context.sh`, that script makes the context (the base of Debian, the pause container).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.cluster import pip
from tests.cluster.build import content_hash
from tests.cluster.layout import CACHE, CHECKOUT, LOGS, RUN, STATE
from tests.cluster.network import run
from tests.cluster.nodes import NODES, Node
from tests.cluster.progress import step

PREFIX = "localhost/bigmodel"
IMAGES = CHECKOUT / "images"
#: buildah's own storage, so that a machine's other images are not touched by ours, nor ours by them.
STORAGE = STATE.parent / "images"
#: Images on their way to the nodes, as an OCI layout. Kept: a layer that is there already need not be written again.
EXPORT = STATE.parent / "export"
#: The local image that takes the place of a Containerfile's public base (`--build-arg BASE`); `base` where none is
#: named.
BASES = {"torch": "base", "trainer": "torch", "triton": "torch"}
LOCAL = {"base", "pause", "torch"}
#: A wheel that lies here wins over PyPI's build of the same version (torch without CUDA: 0.2 GB instead of 5).
WHEELS = CHECKOUT.parent / "shared" / "wheels"
#: buildah's storage takes parallel builds, but an OCI layout has one index.
_exporting = threading.Lock()


def load(names: Sequence[str]) -> dict[str, str]:
    """Build what has changed of these images and copy it to all nodes; returns name -> reference, for the chart's
    values."""
    references = {name: build(name) for name in names}
    load_references(list(references.values()))
    return references


def for_the_chart() -> list[str]:
    """All images but those that only the local cluster builds upon or needs itself."""
    return sorted(path.parent.name for path in IMAGES.glob("*/Containerfile") if path.parent.name not in LOCAL)


def build(name: str) -> str:
    """Build `images/<name>`, and its local base first, unless there is an image of the same content; returns its
    reference.

    Raises:
        SystemExit: the build failed; the message has the end of its output.
    """
    folder = IMAGES / name
    containerfile = folder / "Containerfile"
    if not containerfile.exists():
        raise SystemExit(f"there is no image {name!r}: images/{name}/Containerfile does not exist")
    own_context = folder / "context.sh"
    if own_context.exists():
        reference = f"{PREFIX}/{name}:{content_hash(*_contents(folder))}"
        with _once(name, reference) as needed:
            if needed:
                with tempfile.TemporaryDirectory(dir=STORAGE) as context:
                    _logged(name, ["sh", str(own_context), context])
                    _buildah_build(name, reference, context, [])
        return reference
    text = containerfile.read_text()
    arguments = {"BASE": build(BASES.get(name, "base"))}
    if "ARG WHEELS" in text:
        arguments["WHEELS"] = " ".join(f"{path.name}:{path.stat().st_size}" for path in sorted(WHEELS.glob("*.whl")))
    contents = [content for path in inputs(text) for content in _contents(CHECKOUT / path)]
    reference = f"{PREFIX}/{name}:{content_hash(json.dumps(arguments).encode(), text.encode(), *contents)}"
    with _once(name, reference) as needed:
        if needed:
            _buildah_build(name, reference, str(CHECKOUT), [f"--build-arg={key}={arguments[key]}" for key in arguments])
    return reference


@contextmanager
def _once(name: str, reference: str) -> Iterator[bool]:
    """Whether the image still has to be built, asked again once a second process that builds it has come to its end."""
    if built(reference):
        yield False
        return
    with (_made(STORAGE) / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if built(reference):
            yield False
        else:
            with step(f"image {name}"):
                yield True


def inputs(containerfile: str) -> list[str]:
    """Paths of the context that a Containerfile reads: sources of COPY and ADD, and of bind mounts of RUN.

    In order, each once.
    """
    found: dict[str, None] = {}
    for line in containerfile.replace("\\\n", " ").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        match words[0].upper():
            case "COPY" | "ADD":
                options = [word for word in words[1:] if word.startswith("--")]
                if not any(option.startswith("--from=") for option in options):
                    found |= dict.fromkeys(words[1 + len(options) : -1])
            case "RUN":
                for mount in re.findall(r"--mount=(\S+)", line):
                    fields: dict[str, str] = dict(field.partition("=")[::2] for field in mount.split(","))
                    if fields.get("type", "bind") == "bind" and "from" not in fields:
                        found[fields.get("source") or fields.get("src", ".")] = None
    return list(found)


def _contents(path: Path) -> Iterator[bytes]:
    """Name, mode and content of a file, or of every file below a folder; without what Python leaves behind."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise SystemExit(f"{path} is to be copied into an image, but there is nothing")
    for file in files:
        if "__pycache__" in file.parts or any(part.endswith(".egg-info") for part in file.parts):
            continue
        yield f"{file.relative_to(CHECKOUT)} {file.stat().st_mode & 0o111:o}".encode()
        yield file.read_bytes()


def built(reference: str) -> bool:
    """Whether this image is in buildah's storage."""
    return subprocess.run([*_buildah("inspect"), "--type=image", reference], capture_output=True).returncode == 0


def _buildah(verb: str) -> list[str]:
    return ["buildah", f"--root={_made(STORAGE)}", f"--runroot={RUN}/buildah", verb]


def _buildah_build(name: str, reference: str, context: str, options: Sequence[str]) -> None:
    """Build with this machine's network, certificates and pip settings, none of which end up in the image."""
    with tempfile.TemporaryDirectory() as temporary:
        wheels = WHEELS if WHEELS.is_dir() else _made(Path(temporary) / "wheels")
        others = pip.local_wheel_folders(os.environ)
        pip_conf = Path(temporary) / "pip.conf"
        files = pip.machine_files(os.environ)
        pip_conf.write_text(pip.configuration(os.environ, files, ["/wheels", *map(str, others)]))
        certificates = [
            Path(folder)
            for folder in ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
        ]
        mounts = {path: path for path in (*certificates, *others) if path.is_dir()}
        mounts |= {wheels: Path("/wheels"), pip_conf: Path("/etc/pip.conf")}
        downloads = _made(CACHE / "pip")  # neither in the image nor gone with it
        _logged(name, [
            "nice", "-n", "5", *_buildah("build"), "--layers", "--isolation=chroot", "--pull-never",
            *(f"--volume={source}:{target}:ro" for source, target in mounts.items()),
            f"--volume={downloads}:{pip.CACHE_IN_BUILD}",
            *options, f"--file={IMAGES}/{name}/Containerfile", f"--tag={reference}", context,
        ])  # fmt: skip


def _logged(name: str, command: Sequence[str]) -> None:
    """Run a long command, its output to LOGS/image-<name>.log and, if it fails, to the error."""
    log = _made(LOGS) / f"image-{name}.log"
    with log.open("wb") as output:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=CHECKOUT
        ).returncode
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise SystemExit(f"image {name} failed with exit code {code} (all of it: {log}):\n{tail}")


def load_references(references: Sequence[str]) -> None:
    """Copy images into every node that does not have them, all nodes at once."""
    for reference in references:
        targets = [node for node in NODES if not has(node, reference)]
        if targets:
            with step(f"{reference.removeprefix(PREFIX + '/')} to {' and '.join(node.name for node in targets)}"):
                manifest = _export(reference)
                with ThreadPoolExecutor() as pool:
                    for done in [pool.submit(_import, node, reference, manifest) for node in targets]:
                        done.result()


def has(node: Node, reference: str) -> bool:
    return bool(ctr(node, "images", "list", "--quiet", f"name=={reference}").strip())


def ctr(node: Node, *arguments: str) -> str:
    """Run containerd's own client on a node, in the namespace of Kubernetes."""
    return run([*node.enter(), "ctr", "--namespace=k8s.io", *arguments])


def _export(reference: str) -> dict[str, Any]:
    """Write the image's layers that are not there yet into the layout EXPORT; returns the descriptor of its manifest.

    Uncompressed, because it does not travel far; that is also why it is not buildah that does it.
    """
    source = f"containers-storage:[{_made(STORAGE)}+{RUN}/buildah]{reference}"
    with _exporting:
        run([
            "skopeo", "--insecure-policy", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers",
            source, f"oci:{_made(EXPORT)}:{reference}",
        ])  # fmt: skip
        index = json.loads((EXPORT / "index.json").read_text())
    return next(
        descriptor for descriptor in index["manifests"]
        if descriptor.get("annotations", {}).get("org.opencontainers.image.ref.name") == reference
    )  # fmt: skip


def _import(node: Node, reference: str, manifest: dict[str, Any]) -> None:
    """Stream the image into the node's containerd, without the layers that are unpacked there already."""
    document = json.loads(_blob(manifest["digest"]).read_bytes())
    differences = json.loads(_blob(document["config"]["digest"]).read_bytes())["rootfs"]["diff_ids"]
    present = {line.split()[0] for line in ctr(node, "snapshots", "list").splitlines() if line}
    layers = [layer["digest"] for layer in document["layers"]]
    missing = [layer for layer, chain in zip(layers, chain_ids(differences), strict=True) if chain not in present]
    command = [*node.enter(), "ctr", "--namespace=k8s.io", "images", "import", "-"]
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=errors, stderr=errors) as process:
            assert process.stdin is not None
            try:
                _write_archive(
                    process.stdin, reference, manifest, [manifest["digest"], document["config"]["digest"], *missing]
                )
                process.stdin.close()
            except BrokenPipeError:
                pass  # its exit code and its own words say why
        if process.returncode != 0:
            errors.seek(0)
            raise SystemExit(f"{node.name} does not take {reference}: {errors.read().decode(errors='replace').strip()}")
    if missing:  # what is unpacked is not needed packed: a second copy of 0.7 GB on each node
        ctr(node, "content", "rm", *missing)


def chain_ids(differences: Sequence[str]) -> list[str]:
    """The names of an image's layers as unpacked one upon the other: of each, with all below it (OCI image
    specification, ChainID)."""
    chain: list[str] = []
    for difference in differences:
        below = chain[-1] if chain else None
        joined = f"{below} {difference}".encode()
        chain.append(difference if below is None else f"sha256:{hashlib.sha256(joined).hexdigest()}")
    return chain


def _write_archive(stream: IO[bytes], reference: str, manifest: dict[str, Any], digests: Sequence[str]) -> None:
    """An OCI archive of one image, of which only these blobs are inside."""
    named = {**manifest, "annotations": {"io.containerd.image.name": reference}}
    files = {
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
        "index.json": {"schemaVersion": 2, "manifests": [named]},
    }
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for digest in digests:
            archive.add(_blob(digest), arcname=f"blobs/{digest.replace(':', '/')}")


def _blob(digest: str) -> Path:
    return EXPORT / "blobs" / digest.replace(":", "/")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
