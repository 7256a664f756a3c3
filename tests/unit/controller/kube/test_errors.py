"""One class for each cause."""

from typing import Any

import pytest

from bigmodel.controller.kube import errors

CASES: dict[str, tuple[int, Any, type[errors.ApiError]]] = {
    "name in use": (409, {"reason": "AlreadyExists", "message": "exists"}, errors.AlreadyExists),
    "changed since": (409, {"reason": "Conflict", "message": "modified"}, errors.Conflict),
    "list expired": (410, {"reason": "Expired", "message": "continue token too old"}, errors.Gone),
    "watch too old": (410, {"code": 410, "message": "too old resource version"}, errors.Gone),
    "no right": (403, {"reason": "Forbidden", "message": "pods is forbidden: User x cannot create"}, errors.Forbidden),
    "quota": (403, {"reason": "Forbidden", "message": "pods is forbidden: exceeded quota: gpus"}, errors.QuotaExceeded),
    "schema": (422, {"reason": "Invalid", "message": "spec.nodes: must be > 0"}, errors.Invalid),
    "a patch by UID meets a successor": (
        422,
        {"reason": "Invalid", "details": {"causes": [{"field": "metadata.uid", "message": "field is immutable"}]}},
        errors.Conflict,
    ),
    "no such path, in plain text": (404, "404 page not found", errors.NotFound),
    "internal error": (500, {"reason": "InternalError", "message": "etcd"}, errors.Unavailable),
    "somebody's webhook is down": (
        500,
        {"reason": "InternalError", "message": 'Internal error occurred: failed calling webhook "a.b": no route'},
        errors.WebhookFailed,
    ),
    "a proxy in front": (502, "<html>Bad Gateway</html>", errors.Unavailable),
    "server-side time-out": (504, {"reason": "Timeout", "message": "request did not complete"}, errors.Unavailable),
    "expired token": (401, {"reason": "Unauthorized", "message": "Unauthorized"}, errors.Unauthorized),
    "too large": (413, "", errors.BadRequest),
}


@pytest.mark.parametrize(("code", "body", "wanted"), CASES.values(), ids=CASES)
def test_cause(code: int, body: Any, wanted: type[errors.ApiError]) -> None:
    error = errors.from_response(code, body)
    assert (type(error), error.code, bool(str(error))) == (wanted, code, True)


@pytest.mark.parametrize(
    ("header", "details", "wanted"),
    [
        ("7", {}, 7.0),
        (None, {"retryAfterSeconds": 3}, 3.0),
        (None, {}, 1.0),
        ("Wed, 21 Oct", {}, 1.0),
        ("9999", {}, 60.0),
    ],
)
def test_how_long_a_busy_server_asks_to_wait(header: str | None, details: dict[str, int], wanted: float) -> None:
    error = errors.from_response(429, {"message": "busy", "details": details}, header)
    assert isinstance(error, errors.TooManyRequests)
    assert error.retry_after == wanted


def test_a_long_message_is_cut() -> None:
    assert len(str(errors.from_response(422, {"message": "x" * 9999}))) == errors.MESSAGE_CHARACTERS
