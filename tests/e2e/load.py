"""Constant load through the gateway, as users have it: kept-alive HTTP and one gRPC channel. Each lost one counts."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.cluster.gateway import PORT
from tests.cluster.layout import HOST_ADDRESS
from tests.demo.infer import Sample

TIMEOUT_SECONDS = 20.0


@dataclass
class Tally:
    """What the clients of one protocol saw. `versions` and `last` by the revision that answered."""

    sent: int = 0
    lost: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)  # on the monotonic clock
    last_lost: float = 0.0

    def answered(self, version: str) -> None:
        self.versions[version] = self.versions.get(version, 0) + 1
        self.last[version] = time.monotonic()

    def missed(self, text: str) -> None:
        self.last_lost = time.monotonic()
        self.lost.append(f"{time.strftime('%X')} {text}")


class Load:
    """`with Load(…)`: so many requests a second by each protocol and connection, one after the other."""

    def __init__(self, host: str, model: str, sample: Sample, per_second: float, connections: int = 1) -> None:
        self.http, self.grpc = Tally(), Tally()
        self._host, self._model, self._sample, self._pause = host, model, sample, 1 / per_second
        self._stop = threading.Event()
        clients = [self._run_http, self._run_grpc] * connections
        self._threads = [threading.Thread(target=client) for client in clients]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def lost(self) -> list[str]:
        return self.http.lost + self.grpc.lost

    @property
    def sent(self) -> int:
        return self.http.sent + self.grpc.sent

    def _run_http(self) -> None:
        connection = http.client.HTTPConnection(HOST_ADDRESS, PORT, timeout=TIMEOUT_SECONDS)
        body = json.dumps({"inputs": [_as_json(name, array) for name, array in self._sample.inputs.items()]})
        headers = {"Host": self._host, "content-type": "application/json"}
        while not self._stop.wait(self._pause):
            self.http.sent += 1
            try:
                connection.request("POST", f"/v2/models/{self._model}/infer", body, headers)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.http.missed(f"HTTP {error!r}")
                connection.close()
                continue
            if answer.status != 200:
                self.http.missed(f"HTTP {answer.status} {text[:200]!r}")
            else:
                self.http.answered(json.loads(text)["model_version"])
        connection.close()

    def _run_grpc(self) -> None:
        arguments = [("grpc.default_authority", self._host)]
        client = triton_grpc.InferenceServerClient(f"{HOST_ADDRESS}:{PORT}", channel_args=arguments)
        inputs = []
        for name, array in self._sample.inputs.items():
            inputs.append(triton_grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        while not self._stop.wait(self._pause):
            self.grpc.sent += 1
            try:
                answer = client.infer(self._model, inputs, client_timeout=TIMEOUT_SECONDS)
                self.grpc.answered(answer.get_response().model_version)
            except InferenceServerException as error:
                self.grpc.missed(f"gRPC {error}")
        client.close()


def _as_json(name: str, array: Any) -> dict[str, Any]:
    datatype = np_to_triton_dtype(array.dtype)
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}
