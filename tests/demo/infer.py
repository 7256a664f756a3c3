"""Asks the served model by HTTP and gRPC from this machine, with the inputs of the artefact's own golden samples."""

from __future__ import annotations

import base64
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import np_to_triton_dtype

from bigmodel.api.names import PORT_TRITON_GRPC, PORT_TRITON_HTTP
from bigmodel.api.run import StoreLocation
from bigmodel.artifact import golden
from bigmodel.artifact.fetch import fetch
from bigmodel.artifact.layout import GOLDEN, variant_directory
from bigmodel.artifact.stores import open_store
from tests.cluster.kubectl import get

Array = npt.NDArray[np.generic]
ROWS = 4  # enough to look at


@dataclass(frozen=True)
class Sample:
    """Golden inputs by name, and the first output's golden answers, one number a row."""

    inputs: dict[str, Array]
    output: str
    outputs: list[float]


@dataclass(frozen=True)
class Answer:
    protocol: str
    outputs: list[float]
    version: str
    milliseconds: float


def golden_sample(job: dict[str, Any], namespace: str, secret: str) -> Sample:
    """The first rows of the largest golden batch of the artefact that `job` published."""
    artifact, s3 = job["status"]["artifact"], job["status"]["resolved"]["store"]["s3"]
    login = get(namespace, "secret", secret)
    assert login is not None, f"no secret {secret} in {namespace}"
    environment = {key: base64.b64decode(value).decode() for key, value in login["data"].items()}
    location = StoreLocation(uri=artifact["uri"], endpoint=from_here(s3["endpoint"]))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "artifact"
        fetch(open_store(location, {**os.environ, **environment}), artifact["digest"], artifact["variant"], place)
        case = golden.read(place / variant_directory(artifact["variant"]) / GOLDEN)[-1]
    output, answers = next(iter(case.outputs.items()))
    rows = {name: array[:ROWS] for name, array in case.inputs.items()}
    return Sample(rows, output, [float(value) for value in answers[:ROWS].reshape(-1)])


def ask(namespace: str, service: str, model: str, sample: Sample) -> list[Answer]:
    """One request by each protocol to the service's stable address."""
    address = _cluster_ip(namespace, service)
    return [
        _ask("HTTP", triton_http, f"{address}:{PORT_TRITON_HTTP}", model, sample),
        _ask("gRPC", triton_grpc, f"{address}:{PORT_TRITON_GRPC}", model, sample),
    ]


def _ask(protocol: str, library: Any, url: str, model: str, sample: Sample) -> Answer:
    client = library.InferenceServerClient(url)
    try:
        inputs = []
        for name, array in sample.inputs.items():
            tensor = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        client.infer(model, inputs)  # opens the connection, which is not what is timed
        begin = time.monotonic()
        result = client.infer(model, inputs)
        milliseconds = (time.monotonic() - begin) * 1000
        response = result.get_response()
        version = response["model_version"] if isinstance(response, dict) else response.model_version
        values = result.as_numpy(sample.output).reshape(-1)
        return Answer(protocol, [float(value) for value in values], version, milliseconds)
    finally:
        client.close()


def _cluster_ip(namespace: str, service: str) -> str:
    """This machine has a route to ClusterIPs but not the cluster's DNS."""
    found = get(namespace, "service", service)
    assert found is not None, f"no service {service} in {namespace}"
    return str(found["spec"]["clusterIP"])


def from_here(endpoint: str) -> str:
    url = urlsplit(endpoint)
    service, namespace = (url.hostname or "").split(".")[:2]
    return f"{url.scheme}://{_cluster_ip(namespace, service)}:{url.port}"
