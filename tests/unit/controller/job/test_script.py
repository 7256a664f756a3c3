"""Own Python under our launcher: its files, and what its end means."""

from __future__ import annotations

from typing import Any

import pytest

from bigmodel.api.run import TrainingRun
from tests.builders import NOON, AJob, a_job, a_last_word, a_progress, an_artifact
from tests.unit.controller.job.world import World

CONFIG_MAP = {"configMap": "my-code", "entrypoint": "train.py"}


def a_script(**spec: Any) -> AJob:
    return a_job().spec(**{"recipe": None, "script": CONFIG_MAP, **spec})


def running_world(**spec: Any) -> World:
    world = World(job=a_script(**spec).manifest).settle()
    return world.after(1).start().settle()


def ended(world: World, **word: Any) -> World:
    """Every pod ends with 0; index 0 says `word`."""
    world.ends(1, 0, a_last_word(1, step=word.get("step", 0)))
    return world.ends(0, 0, a_last_word(0, **{"step": 0, **word})).settle()


def test_the_files_of_a_config_map_are_mounted_read_only_and_the_script_starts_among_them() -> None:
    pod = World(job=a_script(args=["--lr", "0.1"]).manifest).settle().pod(0)["spec"]
    [container] = pod["containers"]
    assert {"name": "bigmodel-script", "configMap": {"name": "my-code"}} in pod["volumes"]
    assert {"name": "bigmodel-script", "mountPath": "/opt/bigmodel/script", "readOnly": True} in container[
        "volumeMounts"
    ]
    assert container["workingDir"] == "/opt/bigmodel/script"
    assert container["command"] == ["bigmodel-launcher"]
    told = {e["name"]: e.get("value", "") for e in container["env"]}
    run = TrainingRun.model_validate_json(told["BIGMODEL_RUN"])
    assert run.script is not None
    assert (run.script.config_map, run.script.entrypoint, run.args) == ("my-code", "train.py", ["--lr", "0.1"])
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in told, "own programs decide by themselves"


@pytest.mark.parametrize(
    ("spec", "directory"),
    [
        ({"script": {"path": "/code", "entrypoint": "src/train.py"}}, "/code"),
        ({"workingDir": "/data"}, "/data"),
    ],
    ids=["a path in the image is where it starts", "workingDir wins"],
)
def test_where_a_script_starts(spec: dict[str, Any], directory: str) -> None:
    pod = World(job=a_script(**spec).manifest).settle().pod(0)["spec"]
    assert pod["containers"][0]["workingDir"] == directory
    assert any(volume["name"] == "bigmodel-script" for volume in pod["volumes"]) is ("script" not in spec)


def test_a_script_that_published_is_served_like_a_recipe() -> None:
    world = ended(running_world(), step=50, artifact=an_artifact())
    assert world.condition("Published") == ("True", "Published")
    assert world.status["artifact"]["shortDigest"] == "3f3f3f3f3f3f"


def test_a_script_promises_no_artefact() -> None:
    world = ended(running_world(), step=50)
    assert world.condition("Complete") == ("True", "Complete")
    assert world.condition("Published") == ("False", "NothingPromised")
    assert world.told[-1] == "Complete"


def test_a_script_that_ended_without_a_step_is_complete_with_a_warning() -> None:
    """Some programs print that they found no GPU and exit with 0."""
    world = ended(running_world())
    assert world.condition("Complete") == ("True", "NoStepReported")
    assert world.condition("Finished") == ("True", "NoStepReported")
    assert "kubectl logs -n ml -l bigmodel.io/job=mlp" in world.status["message"]
    assert (world.events[-1].type, world.events[-1].reason) == ("Warning", "Complete")


def test_steps_that_were_told_before_the_last_word_count() -> None:
    world = running_world()
    world.tells(a_progress().with_(totalSteps=0).training(40, first_step_at=NOON)).settle()
    assert ended(world).condition("Complete") == ("True", "Complete")


def test_an_artefact_where_it_must_not_be_fails_the_script_too() -> None:
    world = ended(running_world(), step=50, artifact=an_artifact(uri="s3://elsewhere/model"))
    assert world.condition("Failed") == ("True", "ArtifactMissing")
