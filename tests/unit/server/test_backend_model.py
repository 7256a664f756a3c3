"""Parts of the file that runs inside Triton, outside of it. All of it: test_chain_on_triton.py."""

import importlib.util
import os
import sys
import types

import pytest

from bigmodel.server.fetch import BACKEND_FILE


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The file as a module, with an empty module in the place of Triton's."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    spec = importlib.util.spec_from_file_location("backend_model", BACKEND_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    return module


THREADS = {
    "the user's own choice": (4, "6", 64, "", 6),
    "all processors of a node without quota": (1, None, 64, "max 100000\n", 64),
    "shared among instances": (4, None, 10, "", 2),
    "a quota of two and a half processors": (1, None, 64, "250000 100000\n", 2),
    "a quota above the affinity": (1, None, 4, "800000 100000\n", 4),
    "more instances than processors": (8, None, 2, "", 1),
    "a quota below one": (1, None, 64, "50000 100000\n", 1),
}


@pytest.mark.parametrize(("instances", "chosen", "processors", "cpu_max", "want"), THREADS.values(), ids=list(THREADS))
def test_threads_of_one_instance(
    backend: types.ModuleType, instances: int, chosen: str | None, processors: int, cpu_max: str, want: int
) -> None:
    assert backend.threads(instances, chosen, processors, cpu_max) == want


def test_an_error_of_torch_is_one_short_line(backend: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(RuntimeError, match=r"^the program failed: ValueError: a b x+$") as raised,
        backend.short_error("the program failed"),
    ):
        raise ValueError("a\n\n  b " + "x" * 5000)
    assert len(str(raised.value)) < 500
    assert raised.value.__suppress_context__
    assert "test_backend_model.py" in capsys.readouterr().err  # the stack is in the log
