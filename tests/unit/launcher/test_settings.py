import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from bigmodel.api.names import coordinator_address
from bigmodel.launcher.settings import BadEnvironment, peer_addresses, read_settings
from tests.unit.launcher.gang import a_run

RUN = a_run(coordinator="mlp-0.mlp-abcde:8272")


def environment(**changes: str) -> dict[str, str]:
    values = {
        "BIGMODEL_RUN": json.dumps(RUN.wire()),
        "BIGMODEL_INDEX": "1",
        "BIGMODEL_INCARNATION": "2",
        "BIGMODEL_POD_IP": "10.0.0.7",
        "BIGMODEL_NODE": "gpu-7",
    }
    return {name: value for name, value in (values | changes).items() if value != ""}


def test_in_a_pod_only_the_controllers_variables_are_needed() -> None:
    settings = read_settings(environment())
    assert settings.run == RUN
    assert (settings.index, settings.incarnation, settings.pod_ip, settings.node) == (1, 2, "10.0.0.7", "gpu-7")
    assert (settings.bind, settings.coordinator_port, settings.progress_port) == ("", 8272, 8270)
    assert settings.peers == ("mlp-0.mlp-abcde:8272", "mlp-1.mlp-abcde:8272")
    assert settings.preload
    assert settings.termination_log == Path("/dev/termination-log")


def test_elsewhere_everything_can_be_said() -> None:
    settings = read_settings(
        environment(
            BIGMODEL_BIND="127.0.0.3",
            BIGMODEL_PEERS="127.0.0.2:1,127.0.0.3:1",
            BIGMODEL_COORDINATOR_PORT="1",
            BIGMODEL_PROGRESS_PORT="2",
            BIGMODEL_PRELOAD="0",
            BIGMODEL_TERMINATION_LOG="/tmp/word",
        )
    )
    assert (settings.bind, settings.coordinator_port, settings.progress_port) == ("127.0.0.3", 1, 2)
    assert settings.peers == ("127.0.0.2:1", "127.0.0.3:1")
    assert not settings.preload
    assert settings.termination_log == Path("/tmp/word")


BAD: dict[str, tuple[Mapping[str, str], str]] = {
    "no run": ({"BIGMODEL_RUN": ""}, "BIGMODEL_RUN is not set"),
    "no index": ({"BIGMODEL_INDEX": ""}, "BIGMODEL_INDEX is not set"),
    "an index that is no number": ({"BIGMODEL_INDEX": "one"}, "'one'; it must be a whole number"),
    "an index beyond the gang": ({"BIGMODEL_INDEX": "2"}, "below nodes, 2"),
    "no address": ({"BIGMODEL_POD_IP": ""}, "BIGMODEL_POD_IP is not set"),
    "too few peers": ({"BIGMODEL_PEERS": "127.0.0.2:1"}, "names 1 addresses"),
    "neither recipe nor script": (
        {"BIGMODEL_RUN": json.dumps({k: v for k, v in RUN.wire().items() if k != "script"})},
        "exactly one of recipe and script",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_bad_environment_is_named(changes: Mapping[str, str], message: str) -> None:
    with pytest.raises(BadEnvironment, match=message):
        read_settings(environment(**changes))


def test_peers_are_the_host_names_of_the_pods() -> None:
    address = coordinator_address("mlp-0", "uid")
    assert peer_addresses(address, 2)[1] == address.replace("mlp-0-0.", "mlp-0-1.")
    assert peer_addresses("localhost:8272", 1) == ("localhost:8272",)
    with pytest.raises(BadEnvironment, match="BIGMODEL_PEERS"):
        peer_addresses("localhost:8272", 2)
