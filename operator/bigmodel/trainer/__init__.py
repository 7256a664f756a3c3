"""Inside a training process: one rank, from its environment to the published model.

Here lives everything that needs torch: mesh, loop, data, recipes, checkpoints, export. It stands on `api` and
`artifact` and knows nothing of Kubernetes. Modules do no work when they are imported and start no thread: the fork
server imports them once and forks every rank from there.

For own scripts: `from bigmodel.trainer import Session` (`session.py` shows how).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigmodel.trainer.session import Session

__all__ = ["Session"]


def __getattr__(name: str) -> Any:
    """Session, imported when it is asked for: this package itself must not import torch."""
    if name != "Session":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bigmodel.trainer.session import Session

    return Session
