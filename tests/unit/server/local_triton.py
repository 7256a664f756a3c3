"""The real tritonserver of the nvidia-pytriton wheel, as a process of this machine on loopback.

Its Python stub links libpython of its minor version and finds its packages by the first `python3` on PATH (PYTHONPATH
is ignored, tried). It was built against NumPy 1: with NumPy 2 every answer is `output tensor shape does not match size
of output`. So it gets a virtual environment of its own: NumPy 1 from the cache, torch from the environment of the
tests.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import venv
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bigmodel.api.names import ENV_TRITON_KEY

VERSION = "2.51.0"
KEY = "the-uid-of-a-pod"
REQUIREMENTS = ["nvidia-pytriton==0.7.0", "numpy==1.26.4"]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bigmodel"


def installed() -> Path:
    """Folder of the wheel and its NumPy; installed at the first call, whole or not at all."""
    target = CACHE / f"tritonserver-{VERSION}"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = CACHE / f"tritonserver-{VERSION}.partial-{os.getpid()}"
    # The environment of the tests has no pip (uv made it); the interpreter it stands on has.
    python = Path(sys.base_prefix) / "bin" / "python3"
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--root-user-action=ignore",
            "--target",
            partial,
            *REQUIREMENTS,
        ],
        check=True,
    )
    server = partial / "pytriton" / "tritonserver"
    stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    for executable in (server / "python_backend_stubs" / stub, server / "bin" / "tritonserver"):
        executable.chmod(0o755)
    shutil.copy(server / "python_backend_stubs" / stub, server / "backends" / "python")
    try:
        partial.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return target


def environment(folder: Path) -> dict[str, str]:
    """Environment of a tritonserver whose stub sees the cache's NumPy and the packages of the tests, made below
    `folder`.

    Raises FileNotFoundError where there is no shared libpython: Triton would only say that a process ended.
    """
    libraries = Path(sysconfig.get_config_var("LIBDIR"))
    library = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    if not (libraries / library).exists():
        raise FileNotFoundError(f"tritonserver's Python stub needs {library}, which is not in {libraries}")
    venv.create(folder, symlinks=True, with_pip=False)
    site_packages = next((folder / "lib").glob("python3.*")) / "site-packages"
    ours = sysconfig.get_path("purelib")
    (site_packages / "packages.pth").write_text(f"{installed()}\n{ours}\n")
    return {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(libraries),
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class LocalTriton:
    process: subprocess.Popen[bytes]
    address: str  # host:port of HTTP
    log: Path

    def stubs(self) -> list[int]:
        """Process ids of the model instances."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for child in children for pid in child.read_text().split()]

    def stop(self) -> None:
        """End it at once, with its model processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(arguments: list[str], port: int, env: dict[str, str], log: Path) -> LocalTriton:
    """`arguments` are those of a serving pod, with paths of this machine; ports are given here."""
    server = installed() / "pytriton" / "tritonserver"
    backends = f"--backend-directory={server / 'backends'}"
    line = [backends if argument.startswith("--backend-directory=") else argument for argument in arguments]
    line = [argument.replace(f"$({ENV_TRITON_KEY})", KEY) for argument in line]
    listen = [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")]
    listen += [f"--http-port={port}", f"--grpc-port={free_port()}", f"--metrics-port={free_port()}"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [server / "bin" / "tritonserver", *line, *listen],
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return LocalTriton(process, f"127.0.0.1:{port}", log)
