"""`dataset://NAME`: the data sets that ship with the trainer image, one safetensors file each (written by
`data.prepare`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from bigmodel.trainer.errors import InvalidRecipe

SCHEME = "dataset://"


@dataclass(frozen=True)
class Dataset:
    """Rows as published by their authors: one array per column or block of columns, the first axis is the row."""

    uri: str
    arrays: dict[str, npt.NDArray[np.generic]]

    @property
    def digest(self) -> str:
        return digest_of_arrays(self.arrays)


def digest_of_arrays(arrays: dict[str, npt.NDArray[np.generic]]) -> str:
    """sha256 over names, types, shapes and values: the same rows in another file have the same digest."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return f"sha256:{found.hexdigest()}"


def load(uri: str, directory: Path) -> Dataset:
    """The data set named by `uri`, from its file in `directory` or, where that is missing, from the package it comes
    in.
    """
    name = uri.removeprefix(SCHEME)
    if not uri.startswith(SCHEME) or name not in SOURCES:
        known = ", ".join(f"{SCHEME}{name}" for name in SOURCES)
        raise InvalidRecipe(f"spec.recipe.data.uri is {uri!r}, the trainer has {known}")
    path = directory / f"{name}.safetensors"
    if path.is_file():
        return Dataset(uri, load_file(path))
    try:
        return Dataset(uri, SOURCES[name]())
    except ImportError as error:
        raise InvalidRecipe(
            f"{uri}: {path} is missing and the package it is made from is not installed ({error}); use the "
            "trainer image, "
            f"or run `python -m bigmodel.trainer.data.prepare {directory}` where the extra bigmodel[datasets] "
            "is installed"
        ) from error


def write(name: str, directory: Path) -> Path:
    """Make the file of one data set from the package it comes in."""
    path = directory / f"{name}.safetensors"
    directory.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(array) for key, array in SOURCES[name]().items()}, path)
    path.chmod(0o644)  # safetensors writes for the owner only, who is root when an image is built
    return path


def diabetes() -> dict[str, npt.NDArray[np.generic]]:
    """442 patients: ten columns (age, sex, bmi, bp, s1…s6; centred, norm 1) and the progression of the disease after
    a year.

    Source: Efron, Hastie, Johnstone, Tibshirani 2004, Least Angle Regression; as in scikit-learn (BSD-3).
    """
    from sklearn.datasets import load_diabetes

    columns, progression = load_diabetes(return_X_y=True)
    return {"columns": columns, "progression": progression}


SOURCES = {"diabetes": diabetes}
