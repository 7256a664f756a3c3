"""Requests to the API server: raw dicts in and out, every one under a time-out, every failure one of `errors`.

Connection, certificates and tokens are kubernetes.aio's (ApiClient and its configuration); its models are not used:
they cost nine times the CPU and three times the memory of a dict.
"""

import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import config as kubeconfig
from kubernetes.aio.client import ApiClient, Configuration

from bigmodel.api.names import FIELD_MANAGER
from bigmodel.controller.decision import CONTROLLER_REVISION, Manifest, ResourceKind
from bigmodel.controller.kube import errors

TIMEOUT_SECONDS = 10.0  # of every request but a watch, waiting for a connection included
PAGE_OBJECTS = 500
CONNECTIONS = 128  # the engine's workers times their parallel writes, and one for each watch
APPLY = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
JSON = "application/json"
YAML = "application/yaml"


async def load_configuration(path: Path | None = None) -> Configuration:
    """How to reach the API server: the kubeconfig file at `path`, else the pod's service account.

    Raises: kubernetes' ConfigException when neither is there.
    """
    configuration = Configuration()
    if path is None:
        kubeconfig.load_incluster_config(client_configuration=configuration)
    else:
        await kubeconfig.load_kube_config(
            config_file=str(path), client_configuration=configuration, persist_config=False
        )
    configuration.connection_pool_maxsize = CONNECTIONS
    configuration.client_session_kwargs = {"trust_env": False}  # else aiohttp looks for a .netrc at every request
    return configuration


class Client:
    """One connection pool to one API server. Use it in the event loop that made it; `close` it in the end."""

    def __init__(
        self,
        configuration: Configuration,
        on_request: Callable[[str, int], None] | None = None,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """`on_request` is told the verb and the HTTP code (0: no answer) of every request.

        `may_write` is asked before each write: a process that was paused and wakes up may have lost its lease.
        """
        self._api = ApiClient(configuration)
        self._may_write = may_write
        self._api.user_agent = FIELD_MANAGER
        self._on_request = on_request or (lambda verb, code: None)

    async def close(self) -> None:
        await self._api.close()

    # Reading

    async def get(self, kind: ResourceKind, namespace: str | None, name: str) -> Manifest:
        """Raises NotFound, and any ApiError."""
        return await self._object("get", "GET", path(kind, namespace, name))

    async def get_path(self, url_path: str) -> Manifest:
        """Whatever JSON is at this path: discovery."""
        return await self._object("get", "GET", url_path)

    async def pages(
        self, kind: ResourceKind, namespace: str | None, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[tuple[list[Manifest], str]]:
        """The objects of a kind page by page, each with the resourceVersion of the whole list.

        Raises: Gone when the list took longer than the server keeps its snapshot: begin anew.
        """
        query = {"limit": str(PAGE_OBJECTS), "labelSelector": label_selector, "fieldSelector": field_selector}
        while True:
            page = await self._object("list", "GET", path(kind, namespace), query)
            items = page.get("items") or []
            for item in items:  # lists leave out what every item shares
                item.setdefault("apiVersion", kind.api_version)
                item.setdefault("kind", kind.kind)
            yield items, page["metadata"]["resourceVersion"]
            if not (token := page["metadata"].get("continue")):
                return
            query["continue"] = token

    async def watch(
        self,
        kind: ResourceKind,
        namespace: str | None,
        resource_version: str,
        label_selector: str = "",
        *,
        server_seconds: int,
        silence_seconds: float,
    ) -> AsyncIterator[Manifest]:
        """Watch events ({type, object}) after `resource_version`, bookmarks included, until the server ends the stream.

        Args:   server_seconds: after so long the server ends it. silence_seconds: so long without a byte is a dead
                connection; the server sends a bookmark about every minute.
        Raises: Gone: list anew. Unavailable: the connection broke or fell silent; go on from the last resourceVersion.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(server_seconds),
            "labelSelector": label_selector,
        }
        limits = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS, sock_read=silence_seconds)
        response = await self._send("watch", "GET", path(kind, namespace), query, limits=limits)
        try:
            rest = b""
            # Not by readline: aiohttp refuses lines longer than its buffer, and an object may have 1.5 MiB.
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event: Manifest = json.loads(line)
                    if event["type"] == "ERROR":
                        raise errors.from_response(int(event["object"].get("code") or 0), event["object"])
                    yield event
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError) as error:
            raise errors.Unavailable(f"watch of {kind.plural} broke: {_reason(error)}") from error
        finally:
            # The rest of the stream is not wanted, and a close alone would wait for the server's TLS farewell.
            if response.connection is not None and response.connection.transport is not None:
                response.connection.transport.abort()
            response.close()

    # Writing. Each returns the object as the server now has it.

    async def create(self, kind: ResourceKind, manifest: Manifest) -> Manifest:
        """Raises AlreadyExists, Refused and its kinds, NotFound (namespace or kind), and any ApiError."""
        url_path = path(kind, manifest["metadata"].get("namespace"))
        query = {"fieldManager": FIELD_MANAGER}
        if kind == CONTROLLER_REVISION:
            # Its data is immutable to the byte, and every patch of its metadata writes the data anew as Go does: other
            # spaces or another order of keys would make each patch a refused change of it. Read as YAML, the server
            # writes it so from the start.
            return await self._object("create", "POST", url_path, query, json.dumps(manifest, ensure_ascii=False), YAML)
        return await self._object("create", "POST", url_path, query, manifest)

    async def replace(self, kind: ResourceKind, manifest: Manifest, subresource: str = "") -> Manifest:
        """PUT. With metadata.resourceVersion it raises Conflict when somebody else wrote since."""
        metadata = manifest["metadata"]
        url_path = path(kind, metadata.get("namespace"), metadata["name"], subresource)
        return await self._object("update", "PUT", url_path, {"fieldManager": FIELD_MANAGER}, manifest)

    async def apply(self, kind: ResourceKind, manifest: Manifest, subresource: str = "") -> Manifest:
        """Server-side apply, taking over conflicting fields.

        With metadata.uid it raises Conflict where the object is another one or gone; with metadata.resourceVersion
        where it changed since. On a subresource the server checks only the latter.
        """
        metadata = manifest["metadata"]
        url_path = path(kind, metadata.get("namespace"), metadata["name"], subresource)
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._object("apply", "PATCH", url_path, query, manifest, APPLY)

    async def merge_patch(
        self, kind: ResourceKind, namespace: str | None, name: str, patch: Manifest, subresource: str = ""
    ) -> Manifest:
        """metadata.uid and metadata.resourceVersion in the patch are preconditions: Conflict."""
        url_path = path(kind, namespace, name, subresource)
        return await self._object("patch", "PATCH", url_path, {"fieldManager": FIELD_MANAGER}, patch, MERGE_PATCH)

    async def delete(
        self, kind: ResourceKind, namespace: str | None, name: str, uid: str, grace_seconds: int | None = None
    ) -> Manifest:
        """Delete the object of this UID; dependents follow in the background.

        Returns: the object while it terminates or as it last was, or a Status. Raises Conflict where the name is now
        another object's, NotFound.
        """
        options: Manifest = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return await self._object("delete", "DELETE", path(kind, namespace, name), {}, options)

    # Transport

    async def _object(
        self,
        verb: str,
        method: str,
        url_path: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | str | None = None,
        content_type: str = JSON,
    ) -> Manifest:
        limits = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        response = await self._send(verb, method, url_path, query, body, content_type, limits)
        try:
            answer: Manifest = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            raise errors.Unavailable(f"{method} {url_path}: the answer broke off: {_reason(error)}") from error
        return answer

    async def _send(
        self,
        verb: str,
        method: str,
        url_path: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | str | None = None,
        content_type: str = JSON,
        limits: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        """The response of a request that succeeded, its body not yet read."""
        if method != "GET" and not self._may_write():
            raise errors.NotLeading(f"{method} {url_path}: not sent, the lease may have run out")
        configuration = self._api.configuration
        headers = {"Accept": JSON, "Content-Type": content_type, "User-Agent": self._api.user_agent}
        if token := await configuration.get_api_key_with_prefix("BearerToken"):  # re-reads a service account's file
            headers["Authorization"] = token
        parameters = urlencode({key: value for key, value in (query or {}).items() if value})
        url = f"{configuration.host}{url_path}?{parameters}" if parameters else f"{configuration.host}{url_path}"
        code = 0
        try:
            answer = await self._api.rest_client.request(method, url, headers, body, _request_timeout=limits)
            response: aiohttp.ClientResponse = answer.response
            code = response.status
            if code < 300:
                return response
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError) as error:
            raise errors.Unavailable(f"{method} {url_path}: {_reason(error)}") from error
        finally:
            self._on_request(verb, code)
        raise errors.from_response(code, _json_or_text(content), response.headers.get("Retry-After"))


def path(kind: ResourceKind, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
    """The URL path of a kind, an object or its subresource. A `namespace` of None lists all of them."""
    prefix = "/api" if "/" not in kind.api_version else "/apis"
    parts = [prefix, kind.api_version]
    if kind.namespaced and namespace:
        parts += ["namespaces", quote(namespace)]
    parts.append(kind.plural)
    parts += [quote(part) for part in (name, subresource) if part]
    return "/".join(parts)


def _json_or_text(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace").strip()


def _reason(error: BaseException) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
