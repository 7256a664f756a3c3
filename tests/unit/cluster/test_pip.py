"""pip inside a build sees this machine's settings, and only those that mean something there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.pip import configuration, local_wheel_folders

ALWAYS = {"find-links = /wheels"}


SETTINGS = {
    "a machine without settings": ({}, "", set()),
    "the environment's index": ({"PIP_INDEX_URL": "https://a/simple"}, "", {"index-url = https://a/simple"}),
    "a file's certificate": ({}, "[global]\ncert = /etc/ssl/ca.pem\n", {"cert = /etc/ssl/ca.pem"}),
    "the environment wins over the file": ({"PIP_TIMEOUT": "9"}, "[global]\ntimeout = 1\n", {"timeout = 9"}),
    "settings of `pip install` count": ({}, "[install]\nretries = 3\n", {"retries = 3"}),
    "other commands' do not": ({}, "[freeze]\ntimeout = 3\n", set()),
    "places outside stay outside": (
        {"PIP_FIND_LINKS": "/opt/wheels", "PIP_CACHE_DIR": "/x", "PIP_TARGET": "/y", "PIP_USER": "1"}, "", set(),
    ),
    "an empty variable says nothing": ({"PIP_INDEX_URL": ""}, "", set()),
    "other programs' variables do not count": ({"PIPENV": "1", "HOME": "/root"}, "", set()),
}  # fmt: skip


@pytest.mark.parametrize(("environment", "file", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_configuration(tmp_path: Path, environment: dict[str, str], file: str, expected: set[str]) -> None:
    path = tmp_path / "pip.conf"
    path.write_text(file)
    lines = configuration(environment, [tmp_path / "missing.conf", path], ["/wheels"]).splitlines()
    assert lines[0] == "[global]"
    assert set(lines[1:]) == expected | ALWAYS


def test_only_folders_that_are_here_can_be_mounted(tmp_path: Path) -> None:
    links = f"{tmp_path} /not/here https://example.org/wheels"
    assert local_wheel_folders({"PIP_FIND_LINKS": links}) == [tmp_path]
    assert local_wheel_folders({}) == []
