"""The launcher's process: settings from the environment, one node, its exit code."""

import asyncio
import logging
import os
import signal
import sys
import traceback
from typing import NoReturn

EXIT_USAGE = 64  # sysexits.h
EXIT_SOFTWARE = 70
EXIT_TERMINATED = 143


def main() -> None:
    # The kernel gives PID 1 no default action: a SIGTERM that came during our imports would be lost.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_TERMINATED))
    from pydantic import ValidationError

    from bigmodel.launcher.settings import BadEnvironment, read_settings

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s launcher %(levelname)s %(message)s", force=True
    )
    try:
        settings = read_settings(os.environ)
    except (BadEnvironment, ValidationError) as error:
        logging.error("%s", error)
        sys.exit(EXIT_USAGE)

    from bigmodel.launcher.node import Node

    async def live() -> NoReturn:
        node = Node(settings, os.environ)
        try:
            code = await node.run()
        except Exception:
            code = EXIT_SOFTWARE
            traceback.print_exc()
            node.fail(traceback.format_exc(limit=-3))
        logging.shutdown()
        os._exit(code)  # asyncio.run would wait for look-ups of names that hang

    asyncio.run(live())


if __name__ == "__main__":
    main()
