"""metadata.managedFields: who owns which field, where server-side apply alone would leave something behind.

Apply removes a field that it applied before and no longer mentions, unless somebody else owns it too. That somebody is
ourselves when we created the object by POST: an `Update` entry under the same name.
"""

from typing import Any

from bigmodel.api.names import FIELD_MANAGER

Entries = list[dict[str, Any]]


def creation_as_apply(entries: Entries) -> Entries | None:
    """The entries with our create counted as an apply; None when there is nothing to change."""
    created = [entry for entry in entries if _is_ours(entry, "Update")]
    if not created:
        return None
    applied = [entry for entry in entries if _is_ours(entry, "Apply")]
    fields: dict[str, Any] = {}
    for entry in (*applied, *created):
        fields = _union(fields, entry.get("fieldsV1") or {})
    ours = {**(applied or created)[0], "operation": "Apply", "fieldsV1": fields}
    return [ours, *(entry for entry in entries if entry not in created and entry not in applied)]


def _is_ours(entry: dict[str, Any], operation: str) -> bool:
    return (
        entry.get("manager") == FIELD_MANAGER and entry.get("operation") == operation and not entry.get("subresource")
    )


def _union(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both trees of field names in one; the leaves are empty."""
    return {
        name: _union(one[name], other[name]) if name in one and name in other else one.get(name, other.get(name))
        for name in (*one, *(name for name in other if name not in one))
    }
