"""What is made once is made whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import build


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    return tmp_path


DIFFERENT = {
    "a changed byte": ([b"ab", b"c"], [b"ab", b"d"]),
    "a byte moved over the border of two files": ([b"ab", b"c"], [b"a", b"bc"]),
    "another order": ([b"a", b"b"], [b"b", b"a"]),
    "an empty file more": ([b"a"], [b"a", b""]),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_the_hash_tells_apart(one: list[bytes], other: list[bytes]) -> None:
    assert build.content_hash(*one) == build.content_hash(*one)
    assert build.content_hash(*one) != build.content_hash(*other)


def test_what_is_there_is_not_made_again(cache: Path) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "program").write_text("done")

    for _ in range(2):
        assert (build.made_once(cache / "programs", make) / "program").read_text() == "done"
    assert len(calls) == 1


def test_a_build_that_fails_leaves_nothing_that_looks_finished(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise SystemExit("out of disk")

    with pytest.raises(SystemExit, match="out of disk"):
        build.made_once(cache / "programs", fail)
    assert not (cache / "programs").exists()

    whole = build.made_once(cache / "programs", lambda folder: (folder / "program").touch())
    assert [file.name for file in whole.iterdir()] == ["program"]


COMPILERS = {
    "this year's": ("go version go1.26.8 linux/amd64", True),
    "the first that can": ("go version go1.21.0 linux/amd64", True),
    "Debian 12's": ("go version go1.19.8 linux/amd64", False),
    "none": ("", False),
}


@pytest.mark.parametrize(("version", "expected"), COMPILERS.values(), ids=COMPILERS)
def test_a_compiler_that_fetches_newer_ones_will_do(version: str, expected: bool) -> None:
    assert build.fetches_its_successor(version) is expected
