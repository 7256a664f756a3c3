"""Mistakes in the settings file are named with file, field, value and rule."""

from pathlib import Path

import pytest

from bigmodel.controller.settings import SettingsError, read_settings

IMAGES = "images: {trainer: t, server: s, triton: x}\n"


def test_the_least_file_has_a_default_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(IMAGES)
    settings = read_settings(path)
    assert (settings.store, settings.watch_namespaces, settings.leader_election.lease_seconds) == (None, (), 5)


WRONG = {
    "a key nobody knows": (IMAGES + "imagePullPolcy: Never", "imagePullPolcy: Extra inputs are not permitted"),
    "an image missing": ("images: {trainer: t, server: s}", "images.triton: Field required"),
    "a value that is not offered": (IMAGES + "imagePullPolicy: Sometimes", "imagePullPolicy: .*got 'Sometimes'"),
    "a lease that one slow request would cost": (
        IMAGES + "leaderElection: {leaseSeconds: 3, renewSeconds: 2}",
        r"leaderElection: .*renewSeconds is 2, at most a third of leaseSeconds \(3\)",
    ),
    "not YAML": ("images: {", "is not YAML"),
    "an empty file": ("", "images: Field required"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_mistakes(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=message) as raised:
        read_settings(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--settings"):
        read_settings(tmp_path / "none.yaml")
