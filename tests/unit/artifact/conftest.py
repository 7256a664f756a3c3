from collections.abc import Iterator
from pathlib import Path

import pytest

from bigmodel.api.run import StoreLocation
from tests.unit.artifact import seaweedfs


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweedfs.S3Server]:
    server, process = seaweedfs.start(tmp_path_factory.mktemp("seaweedfs"))
    yield server
    process.kill()
    process.wait()


@pytest.fixture(params=["directory", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLocation:
    """An empty store of either kind."""
    if request.param == "directory":
        return StoreLocation(uri=f"file://{tmp_path}/a%20store")
    return request.getfixturevalue("s3").location(f"tests/{tmp_path.parent.name}/{tmp_path.name}")
