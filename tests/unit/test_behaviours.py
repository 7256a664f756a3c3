"""docs/behaviours.md names tests; here it is held to name tests that exist, for every row."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/behaviours.md").read_text()
WITHOUT_A_TEST = {"B13", "B14", "B26"}  # said on the page


def _names(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert named
    assert [f"{path}::{name}" for path, name in named if name not in _names(path)] == []


def test_every_behaviour_has_its_row() -> None:
    wanted = {f"{part}{n}" for part, last in (("A", 34), ("B", 30), ("C", 43)) for n in range(1, last + 1)}
    rows = set(re.findall(r"^\| ([ABC]\d+)", PAGE, re.MULTILINE))
    assert wanted - rows == WITHOUT_A_TEST
    assert all(behaviour in PAGE for behaviour in WITHOUT_A_TEST)
