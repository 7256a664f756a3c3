"""The launcher's process: settings from the environment, one node, its exit code."""

import asyncio
import logging
import os
import sys
import traceback

from pydantic import ValidationError

from bigmodel.launcher.node import Node
from bigmodel.launcher.settings import BadEnvironment, Settings, read_settings

EXIT_USAGE = 64  # sysexits.h
EXIT_SOFTWARE = 70


def main() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s launcher %(levelname)s %(message)s", force=True
    )
    try:
        settings = read_settings(os.environ)
    except (BadEnvironment, ValidationError) as error:
        logging.error("%s", error)
        sys.exit(EXIT_USAGE)
    sys.exit(asyncio.run(_live(settings)))


async def _live(settings: Settings) -> int:
    node = Node(settings, os.environ)
    try:
        return await node.run()
    except Exception:
        traceback.print_exc()
        node.fail(traceback.format_exc(limit=-3))
        return EXIT_SOFTWARE


if __name__ == "__main__":
    main()
