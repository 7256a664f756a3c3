"""`python -m bigmodel.trainer.data.prepare DIRECTORY`: write every data set of the trainer image. Run once, when the
image is built.
"""

import sys
from pathlib import Path

from bigmodel.trainer.data.datasets import SOURCES, write


def main() -> None:
    for name in SOURCES:
        path = write(name, Path(sys.argv[1]))
        sys.stdout.write(f"{path} {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
