"""When a checkpoint is due. Pure: times are arguments, in seconds of a monotonic clock. Rank 0 asks it; the others
obey.
"""

import math
from dataclasses import dataclass, field

from bigmodel.api.job import Checkpoint

DEFAULT_SECONDS = 600
SHORTEST_SECONDS, LONGEST_SECONDS = 10.0, 3600.0
# Believed until more is known: one failure in six hours, a second for a save. A gang of two nodes fails less often; a
# prior that is too short costs saves of some milliseconds, one that is too long costs hours of training.
PRIOR_FAILURE_SECONDS = 6 * 3600.0
PRIOR_COST_SECONDS = 1.0


@dataclass
class Cadence:
    """`failures` that the job had so far, in `trained_seconds` of training; both matter to `auto` alone."""

    policy: Checkpoint
    failures: int = 0
    trained_seconds: float = 0.0
    _since: float = 0.0
    _started: float = 0.0
    _costs: list[float] = field(default_factory=list)

    def start(self, now: float) -> None:
        """Training begins, or goes on from a checkpoint."""
        self._since = self._started = now

    def due(self, step: int, now: float) -> bool:
        """Whether the state after `step` updates is to be saved."""
        if self.policy.every_steps is not None:
            return step % self.policy.every_steps == 0
        return now - self._since >= self.interval_seconds(now)

    def saved(self, now: float, cost_seconds: float) -> None:
        """Also after a save that failed: it is tried again at the next interval, not at the next step."""
        self._since = now
        self._costs = [*self._costs[-4:], cost_seconds]

    def trained(self, now: float) -> float:
        return self.trained_seconds + now - self._started

    def interval_seconds(self, now: float) -> float:
        """For `auto`, √(2 · cost of a save · mean time between failures).

        The mean time starts from the prior and moves to what was seen: (prior + trained) / (1 + failures).
        Source: Young 1974, A first order approximation to the optimum checkpoint interval; Daly 2006 for its bounds.
        """
        if not self.policy.auto:
            return self.policy.every_seconds or DEFAULT_SECONDS
        cost = sum(self._costs) / len(self._costs) if self._costs else PRIOR_COST_SECONDS
        mean_seconds = (PRIOR_FAILURE_SECONDS + self.trained(now)) / (1 + self.failures)
        return min(LONGEST_SECONDS, max(SHORTEST_SECONDS, math.sqrt(2 * cost * mean_seconds)))
