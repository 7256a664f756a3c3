"""What pip inside an image build must know of this machine: its index, certificates and wheels.

Mounted, never part of the image.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Settings that name a place or a manner of installation outside, and mean nothing in the image.
_LEFT_OUTSIDE = {
    "config-file",
    "cache-dir",
    "find-links",
    "target",
    "prefix",
    "root",
    "user",
    "require-virtualenv",
    "log",
}


def configuration(environment: Mapping[str, str], files: Sequence[Path], find_links: Sequence[str]) -> str:
    """A pip.conf for the build.

    Args:
        environment: this process's; PIP_INDEX_URL and the like win over the files, as they do for pip itself.
        files: this machine's pip.conf files, the weakest first; those that are not there do not matter.
        find_links: folders inside the build that hold wheels.
    """
    parser = configparser.RawConfigParser()
    parser.read(files)
    settings: dict[str, str] = {}
    for section in ("global", "install"):
        settings |= dict(parser.items(section)) if parser.has_section(section) else {}
    settings |= {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environment.items()
        if name.startswith("PIP_") and value
    }
    settings = {name: value for name, value in settings.items() if name not in _LEFT_OUTSIDE}
    settings |= {"find-links": " ".join(find_links)}
    lines = [f"{name} = {value}".replace("\n", "\n    ") for name, value in sorted(settings.items())]
    return "\n".join(["[global]", *lines, ""])


def machine_files(environment: Mapping[str, str]) -> list[Path]:
    """Where pip looks for its configuration on this machine, the weakest first."""
    home = Path.home()
    own = environment.get("PIP_CONFIG_FILE")
    return [Path("/etc/pip.conf"), home / ".pip/pip.conf", home / ".config/pip/pip.conf", *([Path(own)] if own else [])]


def local_wheel_folders(environment: Mapping[str, str]) -> list[Path]:
    """Folders of PIP_FIND_LINKS that exist here; what is a URL in it cannot be mounted and is left out."""
    return [Path(link) for link in environment.get("PIP_FIND_LINKS", "").split() if Path(link).is_dir()]
