"""The API server of tests/api, and how much of it all is run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import api_server, connections_end_before_their_loop, kubectl

__all__ = ["api_server", "connections_end_before_their_loop", "kubectl"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every write at every position, outages of a minute")


@pytest.fixture(scope="session")
def full(request: Any) -> bool:
    """Everything, which takes minutes, instead of a sample."""
    return bool(request.config.getoption("--full"))
