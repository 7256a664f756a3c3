"""What the launcher asks of this rank: the file that ENV_NOTICE names. A file, because a rank inside a collective runs
no signal handler.
"""

import logging
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from bigmodel.api.names import ENV_NOTICE
from bigmodel.api.progress import Notice

NOTICE_BYTES = 4096

log = logging.getLogger(__name__)


class Notices:
    """`path` is None without a launcher: nothing is ever asked then."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._heard = 0

    def pending(self) -> Notice | None:
        """What was asked and not heard yet. Looked at each step: it is a few microseconds while there is none."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as file:
                notice = Notice.model_validate_json(file.read(NOTICE_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("%s is no notice: %s", self._path, error)
            return None
        return notice if notice.request > self._heard else None

    def hear(self) -> None:
        """Whatever is asked by now is being done."""
        if (notice := self.pending()) is not None:
            self._heard = notice.request


def notices_of(environ: Mapping[str, str]) -> Notices:
    return Notices(Path(environ[ENV_NOTICE]) if environ.get(ENV_NOTICE) else None)


def outlive_sigterm(environ: Mapping[str, str]) -> None:
    """The launcher sends SIGTERM with a notice to leave, for programs that know no notices. We obey the notice: the
    signal must not end us before the checkpoint. A handler that the program installed itself stays.

    A handler that does nothing instead of SIG_IGN: programs that this one starts would inherit the latter.
    """
    ours = environ.get(ENV_NOTICE) and threading.current_thread() is threading.main_thread()
    if ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.siginterrupt(signal.SIGTERM, False)  # libraries below us need not know about interrupted calls
