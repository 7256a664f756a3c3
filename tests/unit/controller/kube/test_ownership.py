"""What we created by POST counts as applied, so that a later apply can take a field away."""

from typing import Any

from bigmodel.controller.kube.ownership import creation_as_apply


def entry(manager: str, operation: str, fields: dict[str, Any], subresource: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"manager": manager, "operation": operation, "fieldsV1": fields}
    return {**found, "subresource": subresource} if subresource else found


US = "bigmodel-operator"


def test_the_entry_of_the_create_becomes_one_of_apply_and_others_stay() -> None:
    others = [entry("kubelet", "Update", {"f:status": {}}, "status"), entry("kubectl", "Apply", {"f:spec": {}})]
    created = entry(US, "Update", {"f:spec": {"f:a": {}}})
    assert creation_as_apply([created, *others]) == [entry(US, "Apply", {"f:spec": {"f:a": {}}}), *others]


def test_both_of_ours_become_one() -> None:
    applied = entry(US, "Apply", {"f:spec": {"f:a": {}, "f:b": {"f:x": {}}}})
    patched = entry(US, "Update", {"f:spec": {"f:b": {"f:y": {}}}, "f:metadata": {}})
    assert creation_as_apply([applied, patched]) == [
        entry(US, "Apply", {"f:spec": {"f:a": {}, "f:b": {"f:x": {}, "f:y": {}}}, "f:metadata": {}})
    ]
    assert applied["fieldsV1"] == {"f:spec": {"f:a": {}, "f:b": {"f:x": {}}}}  # the argument is left alone


def test_without_such_an_entry_there_is_nothing_to_change() -> None:
    assert creation_as_apply([entry(US, "Apply", {}), entry(US, "Update", {}, "status")]) is None
