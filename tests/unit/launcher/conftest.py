from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigmodel.api.run import TrainingRun
from tests.unit.launcher.gang import LoopbackGang


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Callable[..., LoopbackGang]]:
    """Makes gangs of real launchers, and leaves none behind."""
    made: list[LoopbackGang] = []

    def make(run: TrainingRun, **environment: Any) -> LoopbackGang:
        made.append(LoopbackGang(tmp_path, run, **{name: str(value) for name, value in environment.items()}))
        return made[-1]

    yield make
    for one in made:
        one.close()
