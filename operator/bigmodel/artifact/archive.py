"""What a torch.export archive may hold, as an allow-list. Read as a plain zip, without torch: checked before anything
loads it.

`torch.export.load` (2.13) unpickles custom objects, opaque objects, pickled weights and sample inputs. All are
refused, so that nothing depends on TORCH_FORCE_WEIGHTS_ONLY_LOAD being set where the program is loaded. An
allow-list, because payload files are chosen by names inside the archive: a name like `opaque_obj_/../x` would slip
past a deny-list. A program stays code; this closes the silent ways in. Names:
torch/csrc/export/pt2_archive_constants.h.
"""

import json
import re
import zipfile
from pathlib import Path

CONFIG = re.compile(r"data/(weights|constants)/\w+_(weights|constants)_config\.json")
PAYLOAD = re.compile(r"(weight|tensor)_\d+")
SAMPLE_INPUTS = re.compile(r"data/sample_inputs/\w+\.pt")
OTHER = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|models/\w+\.json"
    r"|archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)"
)
CONFIG_BYTES = 16 << 20


class UnsafeProgram(Exception):
    """A program archive that would unpickle something while it is loaded, or is none."""


def check_program(path: Path) -> None:
    """Raises UnsafeProgram unless `path` is a torch.export archive of plain tensors and a graph."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path.name, archive)
    except zipfile.BadZipFile as error:
        raise UnsafeProgram(f"{path.name} is no torch.export archive: {error}; publish the model again") from error


def _check_members(program: str, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    roots = {member.filename.partition("/")[0] for member in members}
    if len(roots) != 1 or len({member.filename for member in members}) < len(members):
        # torch and zipfile could take different files for the same name.
        raise UnsafeProgram(f"{program} has {len(roots)} root folders or a file twice; export the model anew")
    for member in members:
        name = member.filename.partition("/")[2]
        if CONFIG.fullmatch(name):
            if member.file_size > CONFIG_BYTES:
                raise UnsafeProgram(f"{program}: {name} has {member.file_size} bytes, at most {CONFIG_BYTES} are read")
            _check_config(program, name, archive.read(member))
        elif SAMPLE_INPUTS.fullmatch(name):
            if member.file_size:
                raise UnsafeProgram(f"{program} carries sample inputs, a pickle; export with example_inputs = None")
        elif not OTHER.fullmatch(name):
            raise UnsafeProgram(
                f"{program} holds {name!r}, which a program of plain tensors does not need and loading may unpickle "
                "(custom and opaque objects are such); export the model without it"
            )


def _check_config(program: str, name: str, data: bytes) -> None:
    try:
        config = json.loads(data)["config"]
        payloads = [(tensor, payload["path_name"], payload["use_pickle"]) for tensor, payload in config.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsafeProgram(
            f"{program}: {name} is not in the format of torch 2.13: {error!r}; export the model anew"
        ) from error
    for tensor, payload, pickled in payloads:
        if pickled is not False or not isinstance(payload, str) or not PAYLOAD.fullmatch(payload):
            raise UnsafeProgram(
                f"{program}: {tensor} is stored as {payload!r} (pickled: {pickled}); only plain tensors are "
                "loaded, export the model without it"
            )
