"""The learning rate over a run, as a factor of the optimizer's own. Pure, so that a resumed run needs nothing but its
step.
"""

import math

from bigmodel.api.job import Schedule


def factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """For the update that leads from `step` to `step` + 1; `total_steps` updates are planned.

    Linear warm-up from 0 (the first update already moves), then constant, or down to 0 at the end: linearly, or by
    half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts).
    """
    if step < schedule.warmup_steps:
        return (step + 1) / (schedule.warmup_steps + 1)
    done = (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
    match schedule.name:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return (1.0 + math.cos(math.pi * done)) / 2
