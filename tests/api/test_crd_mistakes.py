"""Every typical mistake is refused before anything runs, with field, value, rule and way out.

tests/api/mistakes holds one YAML file for each, as somebody would type it, under the whole text of the refusal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigmodel.api import crd
from tests.api.kubectl import Kubectl, Refused

MISTAKES = sorted((Path(__file__).parent / "mistakes").glob("*/*.yaml"))
MARK = "# refused: "


def refusals(mistake: Path) -> list[str]:
    return [line.removeprefix(MARK) for line in mistake.read_text().splitlines() if line.startswith(MARK)]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_mistake_is_refused_with_the_way_out(kubectl: Kubectl, mistake: Path) -> None:
    said, wanted = kubectl.refusal(yaml.safe_load(mistake.read_text())), refusals(mistake)
    assert wanted
    assert [text for text in wanted if text not in said] == [], said


def test_kubectl_shows_every_refusal_on_a_line_of_its_own(kubectl: Kubectl) -> None:
    several = next(path for path in MISTAKES if path.stem == "several-at-once")
    with pytest.raises(Refused) as refused:
        kubectl("create", "--dry-run=server", "-f", str(several))
    assert len(refusals(several)) > 1
    assert {f"* {text}" for text in refusals(several)} <= set(str(refused.value).splitlines())


def test_kubectl_refuses_an_unknown_field(kubectl: Kubectl) -> None:
    mistake = next(path for path in MISTAKES if path.stem == "field-misspelt")
    with pytest.raises(Refused, match=r'unknown field "spec\.recipe\.batchsize"'):
        kubectl("apply", "-f", str(mistake))


def test_server_side_apply_refuses_an_unknown_field_too(kubectl: Kubectl) -> None:
    mistake = next(path for path in MISTAKES if path.stem == "field-misspelt")
    with pytest.raises(Refused, match=r"spec\.recipe\.batchsize: field not declared in schema"):
        kubectl("apply", "--server-side", "--dry-run=server", "-f", str(mistake))


@pytest.mark.parametrize("resource", crd.RESOURCES, ids=lambda resource: resource.kind)
def test_every_rule_about_one_object_has_its_mistake(resource: crd.Resource) -> None:
    """A rule nobody saw fail may be one that cannot. Rules about a change are in test_crd_changes."""
    texts = "\n".join(text for mistake in MISTAKES for text in refusals(mistake))
    root = crd.definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    unseen = [
        asked
        for rule in _rules(root)
        if "oldSelf" not in rule["rule"] and "not served by this version" not in (asked := _asked(rule))
        if asked not in texts
    ]
    assert unseen == []


def _rules(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from node.get("x-kubernetes-validations", [])
    for child in (
        *node.get("properties", {}).values(),
        *(node[key] for key in ("items", "additionalProperties") if key in node),
    ):
        yield from _rules(child)


def _asked(rule: dict[str, Any]) -> str:
    """The text of a rule without the value found."""
    return rule.get("message") or rule["messageExpression"].partition('": ')[2].removesuffix('"').replace('\\"', '"')
