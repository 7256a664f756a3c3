"""Container images, built by buildah from images/ and known by what they were made from.

The tag of an image is the hash of everything that goes into it, and so nothing is built or copied twice: not for a
second checkout, not for a second cluster. `images/<name>/Containerfile` is built with the repository as its context;
where there is an `images/<name>/context.sh`, that script makes the context (the base of Debian, the pause container).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import pip
from tests.cluster.build import content_hash
from tests.cluster.delivery import PREFIX, RUNROOT, STORAGE, deliver, made
from tests.cluster.layout import CACHE, CHECKOUT, LOGS
from tests.cluster.locks import locked
from tests.cluster.network import run
from tests.cluster.progress import step

IMAGES = CHECKOUT / "images"
#: The local image that takes the place of a Containerfile's public base (`--build-arg BASE`); `base` where none is
#: named.
BASES = {"torch": "base", "trainer": "torch", "triton": "torch"}
#: Images that no chart needs.
LOCAL = {"base", "pause", "torch"}
#: A wheel that lies here wins over PyPI's build of the same version (torch without CUDA: 0.2 GB instead of 5).
WHEELS = CHECKOUT.parent / "shared" / "wheels"
#: How many versions of an image are kept: what a release on the cluster names must not go while somebody edits.
KEPT = 20


def load(names: Sequence[str]) -> dict[str, str]:
    """Build what has changed of these images and copy it to all nodes; returns name -> reference, for chart values."""
    references = {name: build(name) for name in names}
    deliver(list(references.values()), in_storage)
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
    with locked(STORAGE / f"{name}.lock", f"builds image {name}"):
        if built(reference):
            yield False
        else:
            with step(f"image {name}"):
                yield True
            _forget_old(name)


def _forget_old(name: str) -> None:
    """Keep the newest versions of an image; layers that they share with older ones stay in the cache."""
    newest = sorted(
        _listed(f"--filter=reference={PREFIX}/{name}"), key=lambda image: int(image["created"]), reverse=True
    )
    for image in newest[KEPT:]:
        subprocess.run([*_buildah("rmi"), *image["names"]], capture_output=True)  # one that others stand on stays


def in_storage() -> set[str]:
    """References of all images that were built here and are kept."""
    return {name for image in _listed() for name in image.get("names") or ()}


def _listed(*options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run([*_buildah("images"), "--json", *options]))
    return found


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
    return ["buildah", f"--root={made(STORAGE)}", f"--runroot={RUNROOT}", verb]


def _buildah_build(name: str, reference: str, context: str, options: Sequence[str]) -> None:
    """Build with this machine's network, certificates and pip settings, none of which end up in the image."""
    with tempfile.TemporaryDirectory() as temporary:
        wheels = WHEELS if WHEELS.is_dir() else made(Path(temporary) / "wheels")
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
        # What RUN caches, pip's downloads, goes there: neither in the image nor gone with it.
        cache = made(CACHE / "buildah")
        _logged(name, [
            "nice", "-n", "5", "env", f"TMPDIR={cache}",
            *_buildah("build"), "--layers", "--isolation=chroot", "--pull-never",
            *(f"--volume={source}:{target}:ro" for source, target in mounts.items()),
            *options, f"--file={IMAGES}/{name}/Containerfile", f"--tag={reference}", context,
        ])  # fmt: skip


def _logged(name: str, command: Sequence[str]) -> None:
    """Run a long command, its output to LOGS/image-<name>.log and, if it fails, to the error."""
    log = made(LOGS) / f"image-{name}.log"
    with log.open("wb") as output:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=CHECKOUT
        ).returncode
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise SystemExit(f"image {name} failed with exit code {code} (all of it: {log}):\n{tail}")
