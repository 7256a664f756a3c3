"""Just enough of the Kubernetes API to start a cluster: one request at a time, as its administrator, with nothing but
the standard library."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class ApiError(Exception):
    """The API server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """Requests to one API server with one client certificate; a connection each, so that it never holds a dead one."""

    def __init__(self, server: str, certificates: Path, party: str = "admin") -> None:
        self._address = urlsplit(server)
        self._context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        self._context.load_cert_chain(certificates / f"{party}.crt", certificates / f"{party}.key")

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """The parsed answer (text where it is not JSON).

        Raises:
            ApiError: the answer was not 2xx.
            OSError: nobody answered.
        """
        assert self._address.hostname is not None
        connection = http.client.HTTPSConnection(
            self._address.hostname, self._address.port, timeout=10, context=self._context
        )
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": content_type, "Accept": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        except http.client.HTTPException as error:
            raise OSError(f"the API server broke off: {error!r}") from error
        finally:
            connection.close()
        if response.status >= 300:
            raise ApiError(response.status, text)
        return json.loads(text) if text.startswith(("{", "[")) else text

    def apply(self, path: str, body: Any) -> None:
        """Server-side apply of one object at its own path: creates it or makes it so."""
        self.request("PATCH", f"{path}?fieldManager=bigmodel-cluster&force=true", body, "application/apply-patch+yaml")

    def ready(self) -> bool:
        """Whether the API server answers and says that it is ready."""
        try:
            return bool(self.request("GET", "/readyz") == "ok")
        except (OSError, ApiError):
            return False


def wait_until(what: str, check: Callable[[], bool], seconds: float, hint: Callable[[], str]) -> None:
    """Ask again and again until `check` says yes.

    Raises:
        SystemExit: it did not within these seconds; the message has `what` and `hint()`.
    """
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds:.0f} s\n{hint()}")
        time.sleep(0.1)
