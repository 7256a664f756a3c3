"""The rules keep to what the other rooms do: variables that are set, paths that are mounted, fields that exist."""

from __future__ import annotations

import re
from pathlib import Path

from bigmodel.api import crd, rules
from bigmodel.api.names import DATASETS_DIRECTORY
from bigmodel.controller.store_location import STORE_DIRECTORY
from bigmodel.launcher.environment import RankFiles, rank_environment

USERS = "as the user said"


def is_reserved(name: str) -> bool:
    """As the CEL rule decides."""
    return name in rules.RESERVED_ENVIRONMENT or name.startswith(rules.RESERVED_ENVIRONMENT_PREFIXES)


def rank(base: dict[str, str]) -> dict[str, str]:
    start = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "u-1-1"}
    files = RankFiles(Path("/tmp/ranks"), 3, 1)
    return rank_environment(base, start, files, Path("/tmp/report"), index=1, nodes=2, processes=2, processors=4)


def test_a_variable_that_the_launcher_overrides_is_refused_in_env() -> None:
    """Else what the user wrote would be ignored without a word."""
    names = rank({}).keys()
    overridden = {name for name, value in rank(dict.fromkeys(names, USERS)).items() if value != USERS}
    assert "RANK" in overridden
    assert {name for name in overridden if not is_reserved(name)} == set()


def test_a_variable_that_the_user_may_set_is_not() -> None:
    assert rank({"OMP_NUM_THREADS": USERS, "TORCH_NCCL_DUMP_ON_TIMEOUT": USERS}).items() >= {
        ("OMP_NUM_THREADS", USERS),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", USERS),
    }
    assert not is_reserved("OMP_NUM_THREADS")
    assert not is_reserved("TORCH_NCCL_DUMP_ON_TIMEOUT")


def test_paths_that_are_mounted_or_baked_in_are_refused_as_mount_paths() -> None:
    assert {STORE_DIRECTORY, DATASETS_DIRECTORY, "/tmp", "/dev/shm"} <= set(rules.RESERVED_MOUNT_PATHS)


def test_every_field_a_rule_is_about_exists() -> None:
    """`fieldPath` is checked by the API server, a misspelt `has(self.x)` in an untyped place is not."""
    for model, found in rules.OF_MODEL.items():
        fields = {field.alias for field in model.model_fields.values()}
        for rule in found:
            assert set(re.findall(r"\bself\.\??(\w+)", rule.holds)) <= fields, (model, rule.holds)


def test_rules_say_what_is_wanted_and_what_to_do() -> None:
    every = [rule for found in rules.OF_MODEL.values() for rule in found]
    every += [rule for resource in crd.RESOURCES for rule in rules.at_root(resource.spec)]
    for rule in every:
        assert re.search("; |such as|choose|add|as in|is wanted", rule.asked), rule.asked
        assert not rule.asked.endswith("."), rule.asked  # the API server joins several by commas
