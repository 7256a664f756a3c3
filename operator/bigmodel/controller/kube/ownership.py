"""metadata.managedFields: who owns which field, where server-side apply alone would leave something behind.

Apply removes a field that it applied before and no longer mentions, unless somebody else owns it too. Two owners are in
the way: ourselves as the creator by POST (an `Update` entry), and whoever wrote to a status that is ours alone.
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
        _merge(fields, entry.get("fieldsV1") or {})
    ours = {**(applied or created)[0], "operation": "Apply", "fieldsV1": fields}
    return [ours, *(entry for entry in entries if entry not in created and entry not in applied)]


def status_ours_alone(entries: Entries) -> Entries | None:
    """The entries without those that others have on status; None when there are none."""
    kept = [
        entry
        for entry in entries
        if entry.get("subresource") != "status"
        or (entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply")
    ]
    return kept if len(kept) < len(entries) else None


def _is_ours(entry: dict[str, Any], operation: str) -> bool:
    return (
        entry.get("manager") == FIELD_MANAGER and entry.get("operation") == operation and not entry.get("subresource")
    )


def _merge(into: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(into.get(name), dict) and isinstance(value, dict):
            _merge(into[name], value)
        else:
            into[name] = {**value} if isinstance(value, dict) else value
