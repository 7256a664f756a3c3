import json
from pathlib import Path
from typing import Any

import pytest

from bigmodel.api.job import Script
from bigmodel.launcher.environment import (
    RankFiles,
    process_count,
    processor_count,
    program,
    rank_environment,
    tensorflow_cluster,
)
from tests.unit.launcher.gang import a_run

START = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4711", "TORCHELASTIC_USE_AGENT_STORE": "True"}


def of_rank(rank: int, base: dict[str, str] | None = None, start: dict[str, str] = START) -> dict[str, str]:
    files = RankFiles(Path("/run"), 3, rank)
    return rank_environment(
        base or {}, start, files, Path("/run/report"), index=rank // 4, nodes=2, processes=4, processors=8
    )


def test_the_place_of_a_rank_is_its_pods_index() -> None:
    env = of_rank(5)
    wanted = {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
        "NODE_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "ROLE_RANK": "5",
        "ROLE_WORLD_SIZE": "8",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "4711",
        "OMP_NUM_THREADS": "2",
        "BIGMODEL_GENERATION": "3",
        "BIGMODEL_REPORT": "/run/report",
        "TORCHELASTIC_ERROR_FILE": "/run/g3-r5-error.json",
    }
    assert {name: env[name] for name in wanted} == wanted


def test_a_user_may_set_threads_but_not_ranks() -> None:
    env = of_rank(0, {"OMP_NUM_THREADS": "7", "RANK": "9", "MASTER_ADDR": "elsewhere", "HOME": "/tmp"})
    assert (env["OMP_NUM_THREADS"], env["RANK"], env["MASTER_ADDR"], env["HOME"]) == ("7", "0", "10.0.0.1", "/tmp")


def test_without_a_store_nobody_is_told_to_wait_for_one() -> None:
    env = of_rank(0, {"TORCHELASTIC_USE_AGENT_STORE": "True"}, {"MASTER_ADDR": "10.0.0.1"})
    assert "TORCHELASTIC_USE_AGENT_STORE" not in env


def test_a_tensorflow_rank_knows_all_workers_and_its_place() -> None:
    """Of every rank, by host names that replacements keep."""
    workers = tensorflow_cluster(["mlp-0.mlp-x:8272", "mlp-1.mlp-x:8272"], processes=4)
    files = RankFiles(Path("/run"), 3, 5)
    env = rank_environment(
        {"TF_CONFIG": "{}"},
        {"MASTER_ADDR": "10.0.0.1"},
        files,
        Path("/run/report"),
        index=1,
        nodes=2,
        processes=4,
        processors=8,
        workers=workers,
    )
    assert json.loads(env["TF_CONFIG"]) == {
        "cluster": {"worker": [f"mlp-{index}.mlp-x:{29500 + local}" for index in (0, 1) for local in range(4)]},
        "task": {"type": "worker", "index": 5},
    }
    assert "TF_CONFIG" not in of_rank(0)


PROGRAMS = {
    "a recipe": ({"script": None, "recipe": {"name": "mlp"}}, {"module": "bigmodel.trainer.main"}),
    "a script of a ConfigMap": (
        {"script": Script(config_map="code", entrypoint="train.py"), "args": ["--fast"]},
        {"path": "/opt/bigmodel/script/train.py", "args": ["--fast"]},
    ),
    "a script on a volume": (
        {"script": Script(path="/code", entrypoint="src/train.py")},
        {"path": "/code/src/train.py", "args": []},
    ),
}


@pytest.mark.parametrize(("changes", "want"), PROGRAMS.values(), ids=PROGRAMS)
def test_what_a_rank_runs(changes: dict[str, Any], want: dict[str, object]) -> None:
    assert program(a_run(**changes)) == want


@pytest.mark.parametrize(("address", "want"), [("127.0.0.2", "lo"), ("10.0.0.1", None)])
def test_gloo_stays_on_loopback_where_the_gang_is(address: str, want: str | None) -> None:
    assert of_rank(0, {}, {"MASTER_ADDR": address}).get("GLOO_SOCKET_IFNAME") == want


def test_processes_of_a_pod(tmp_path: Path) -> None:
    assert process_count(3, tmp_path) == 3
    assert process_count("auto", tmp_path) == 1
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert process_count("auto", tmp_path) == 2


@pytest.mark.parametrize(
    ("text", "want"), [("50000 100000", 0.5), ("max 100000", None), ("nonsense", None), (None, None)]
)
def test_processors_of_a_pod(tmp_path: Path, text: str | None, want: float | None) -> None:
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    assert processor_count(tmp_path) == (want if want is not None else processor_count(Path("/nowhere")))
