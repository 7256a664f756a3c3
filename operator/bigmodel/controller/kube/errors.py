"""What can go wrong with a request to the API server: one class for each cause, mapped by `from_response` alone.

Raised by `client`; nothing above it sees an HTTP library's exception.
"""

from collections.abc import Mapping
from typing import Any

MESSAGE_CHARACTERS = 1024  # an answer may quote a whole object


class ApiError(Exception):
    """A request failed. `code` is the HTTP status, 0 where no answer came."""

    def __init__(self, message: str, code: int = 0, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message[:MESSAGE_CHARACTERS])
        self.code = code
        self.details = details or {}


class Unavailable(ApiError):
    """No answer, a time-out, or a 5xx: the request may or may not have been executed."""


class TooManyRequests(Unavailable):
    """The API server sheds load; it was not executed. `retry_after` is in seconds."""

    retry_after: float = 1.0


class Unauthorized(ApiError):
    """The token or certificate is not accepted."""


class NotLeading(ApiError):
    """Not sent: the lease of this process may have run out, and another one may act."""


class NotFound(ApiError):
    """The object, its namespace, or its kind does not exist."""


class Conflict(ApiError):
    """A resourceVersion or UID precondition failed, or a quota was being counted: look again and repeat."""


class AlreadyExists(ApiError):
    """An object of that name is there."""


class Gone(ApiError):
    """The resourceVersion of a list or watch is too old: list anew."""


class Refused(ApiError):
    """The API server understood and will not: the same request will be refused again until something else changes."""


class BadRequest(Refused):
    """The body is not what the server expects."""


class Forbidden(Refused):
    """RBAC or an admission policy says no."""


class QuotaExceeded(Forbidden):
    """A ResourceQuota of the namespace is used up."""


class WebhookFailed(Refused):
    """Somebody's admission webhook does not answer and is set to refuse then: HTTP says 500, and means this request."""


class Invalid(Refused):
    """The schema or a validation rule says no."""


_BY_REASON: dict[str, type[ApiError]] = {
    "AlreadyExists": AlreadyExists,
    "Conflict": Conflict,
    "Expired": Gone,
    "Gone": Gone,
    "Timeout": Unavailable,
    "ServerTimeout": Unavailable,
}
_BY_CODE: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: BadRequest,
    409: Conflict,
    410: Gone,
    413: BadRequest,
    415: BadRequest,
    422: Invalid,
    429: TooManyRequests,
}


def from_response(code: int, body: Any, retry_after: str | None = None) -> ApiError:
    """The error that an answer other than 2xx, or the object of a watch's ERROR event, stands for.

    Args: body: the answer as JSON (a metav1.Status) or as text. retry_after: the header of that name.
    """
    status: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    message = str(status.get("message") or body or f"HTTP {code} without a message")
    cause = _BY_REASON.get(status.get("reason", "")) or _BY_CODE.get(code) or (Unavailable if code >= 500 else ApiError)
    details = status.get("details") or {}
    if cause is Forbidden and "exceeded quota" in message:  # the API has no reason of its own for it
        cause = QuotaExceeded
    if cause is Unavailable and "failed calling webhook" in message:
        cause = WebhookFailed
    if cause is Invalid and any(one.get("field") == "metadata.uid" for one in details.get("causes") or ()):
        cause = Conflict  # a patch meets an object made anew: "field is immutable"
    error = cause(message, code, details)
    if isinstance(error, TooManyRequests):
        error.retry_after = _seconds(retry_after if retry_after is not None else details.get("retryAfterSeconds"))
    return error


def _seconds(value: Any) -> float:
    try:
        return min(60.0, max(0.1, float(value)))
    except (TypeError, ValueError):  # absent, or HTTP's date form
        return TooManyRequests.retry_after
