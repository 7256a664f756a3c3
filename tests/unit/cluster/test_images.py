"""When an image must be built anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import images

CONTAINERFILES = {
    "several sources, one target": ("COPY pyproject.toml requirements /app/", ["pyproject.toml", "requirements"]),
    "options are no sources": ("COPY --chown=1000:1000 --chmod=755 operator /opt", ["operator"]),
    "ADD reads too": ("ADD rootfs.tar /", ["rootfs.tar"]),
    "another stage is not the context": ("COPY --from=build /out /out", []),
    "a line may go on": ("COPY a \\\n  b \\\n  /to/", ["a", "b"]),
    "a comment says nothing": ("# COPY a /b", []),
    "each once": ("COPY a /x\nCOPY a /y", ["a"]),
    "a bind mount of RUN": ("RUN --mount=type=bind,source=requirements,target=/r cat /r/x", ["requirements"]),
    "a cache mount reads nothing": ("RUN --mount=type=cache,target=/var/cache/pip pip install x", []),
    "both mounts": ("RUN --mount=type=cache,target=/c --mount=source=a,target=/a sh /a/b", ["a"]),
}  # fmt: skip


@pytest.mark.parametrize(("containerfile", "expected"), CONTAINERFILES.values(), ids=CONTAINERFILES)
def test_inputs(containerfile: str, expected: list[str]) -> None:
    assert images.inputs(f"ARG BASE\nFROM ${{BASE}}\n{containerfile}\nUSER 1000:1000\n") == expected


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(images, "CHECKOUT", tmp_path)
    (tmp_path / "operator" / "__pycache__").mkdir(parents=True)
    (tmp_path / "operator" / "main.py").write_text("print()")
    return tmp_path


def test_what_python_leaves_behind_is_no_content(checkout: Path) -> None:
    before = list(images._contents(checkout / "operator"))
    (checkout / "operator" / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"\0")
    assert list(images._contents(checkout / "operator")) == before


@pytest.mark.parametrize("change", ["content", "name", "mode", "one more"])
def test_a_change_of_a_file_is_new_content(checkout: Path, change: str) -> None:
    folder = checkout / "operator"
    before = list(images._contents(folder))
    match change:
        case "content":
            (folder / "main.py").write_text("print(1)")
        case "name":
            (folder / "main.py").rename(folder / "other.py")
        case "mode":
            (folder / "main.py").chmod(0o755)
        case "one more":
            (folder / "second.py").touch()
    assert list(images._contents(folder)) != before


def test_a_source_that_is_not_there_is_named(checkout: Path) -> None:
    with pytest.raises(SystemExit, match="requirements is to be copied into an image, but there is nothing"):
        list(images._contents(checkout / "requirements"))


def test_an_image_that_does_not_exist_is_named() -> None:
    with pytest.raises(SystemExit, match="no image 'trainee': images/trainee/Containerfile does not exist"):
        images.build("trainee")


@pytest.mark.parametrize("name", ["controller", "datasets", "server", "store", "torch", "trainer"])
def test_an_image_gets_the_versions_that_are_tested(name: str) -> None:
    requirements = images.CHECKOUT / "requirements"
    tested = set((requirements / "constraints.txt").read_text().splitlines())
    pinned = set((requirements / f"{name}.txt").read_text().splitlines())
    assert pinned
    assert pinned <= tested, "run `make lock`"
