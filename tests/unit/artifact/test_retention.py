"""What may go from a store that clusters share: by name, by age, and never from a prefix of somebody else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bigmodel.artifact.retention import ForeignStore, Stored, artefacts, check_owner, why_kept
from bigmodel.artifact.stores import Entry

NOW = datetime(2026, 3, 8, tzinfo=UTC)
A, B = "a" * 64, "b" * 64


def entry(key: str, days: float = 30, size_bytes: int = 10) -> Entry:
    return Entry(key, size_bytes, NOW - timedelta(days=days))


LISTING = [
    entry("ml/owner.json"),
    entry(f"ml/mlp/u1/artifact/{A}/manifest.json", days=20),
    entry(f"ml/mlp/u1/artifact/{A}/model/program.pt2", days=21, size_bytes=90),
    entry(f"ml/mlp/u2/artifact/{B}/model/program.pt2", days=8),
    entry("ml/mlp/u1/checkpoint/1.1/50/manifest.json"),
    entry(f"other/mlp/u1/artifact/{A}/manifest.json"),
]


def test_a_listing_becomes_artefacts_oldest_first() -> None:
    assert [(one.job, one.uid, one.digest, one.size_bytes, one.committed) for one in artefacts("ml", LISTING)] == [
        ("mlp", "u1", f"sha256:{A}", 100, True),
        ("mlp", "u2", f"sha256:{B}", 10, False),
    ]


def test_checkpoints_and_other_namespaces_are_never_touched() -> None:
    keys = [key for one in artefacts("ml", LISTING) for key in one.keys]
    assert all(key.startswith("ml/") and "/artifact/" in key for key in keys)


def test_the_manifest_goes_first() -> None:
    (one, _) = artefacts("ml", LISTING)
    assert one.deletion_order()[0].endswith("manifest.json")
    assert sorted(one.deletion_order()) == sorted(one.keys)


@pytest.mark.parametrize(
    ("days", "named", "want"),
    [(30, False, None), (30, True, "named"), (1, True, "named"), (7, False, None), (6.9, False, "young")],
)
def test_an_artefact_is_kept_while_it_is_named_or_young(days: float, named: bool, want: str | None) -> None:
    one = Stored("mlp", "u1", f"sha256:{A}", (), 0, NOW - timedelta(days=days), True)
    assert why_kept(one, {f"sha256:{A}"} if named else set(), NOW) == want


@pytest.mark.parametrize(
    ("mark", "text"),
    [(None, "--claim"), (b'{"cluster": "theirs"}', "belongs to cluster theirs"), (b"{}", "can't be read")],
)
def test_a_prefix_that_is_not_known_to_be_ours_is_refused(mark: bytes | None, text: str) -> None:
    with pytest.raises(ForeignStore, match=text):
        check_owner(mark, "ours", "ml")
    check_owner(b'{"cluster": "ours"}', "ours", "ml")
