import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bigmodel.artifact.archive import UnsafeProgram, check_program
from tests.unit.artifact.artefacts import a_program

CONSTANTS = "p/data/constants/model_constants_config.json"


def constant(path_name: object, pickled: object = False) -> bytes:
    return json.dumps({"config": {"c": {"path_name": path_name, "use_pickle": pickled}}}).encode()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "sample inputs are a pickle": ({"members": {"p/data/sample_inputs/model.pt": b"\x80\x04."}}, "sample inputs"),
    "a custom object": ({"members": {"p/data/constants/custom_obj_0": b"x"}}, "custom_obj_0"),
    "an opaque object": ({"members": {"p/data/constants/opaque_obj_0": b"x"}}, "opaque_obj_0"),
    "an opaque object behind a detour": ({"members": {CONSTANTS: constant("opaque_obj_/../tensor_0")}}, "opaque_obj_"),
    "a custom object in a configuration only": ({"members": {CONSTANTS: constant("custom_obj_0")}}, "custom_obj_0"),
    "a pickled weight": ({"payload": {"use_pickle": True}}, "pickled: True"),
    "pickled by a truthy value": ({"payload": {"use_pickle": 1}}, "pickled: 1"),
    "a path name that is no string": ({"members": {CONSTANTS: constant(["tensor_0"])}}, "stored as"),
    "weights of the format before": ({"members": {"p/data/weights/model.pt": b"x"}}, "data/weights/model.pt"),
    "compiled code": ({"members": {"p/data/aotinductor/model/model.so": b"x"}}, "model.so"),
    "extra files": ({"members": {"p/extra/x": b"x"}}, "extra/x"),
    "two roots": ({"members": {"q/models/model.json": b"{}"}}, "2 root folders"),
    "a configuration that is none": ({"members": {CONSTANTS: b"[]"}}, "not in the format"),
}  # fmt: skip


def test_a_program_of_plain_tensors_passes(tmp_path: Path):
    check_program(
        a_program(tmp_path / "program.pt2", {"p/data/constants/tensor_0": b"x", CONSTANTS: constant("tensor_0")})
    )


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_loading_would_unpickle_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(UnsafeProgram, match=message):
        check_program(a_program(tmp_path / "program.pt2", **changes))


def test_a_name_that_stands_twice_is_refused(tmp_path: Path):
    path = a_program(tmp_path / "program.pt2")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("p/models/model.json", b"{}")
    with pytest.raises(UnsafeProgram, match="twice"):
        check_program(path)


def test_what_is_no_archive_is_refused(tmp_path: Path):
    path = tmp_path / "program.pt2"
    path.write_bytes(b"not a zip")
    with pytest.raises(UnsafeProgram, match=r"no torch\.export archive"):
        check_program(path)
