"""When each step of an attempt was made, and so what it costs to go back to an earlier one. Pure."""

from bisect import bisect_left
from dataclasses import dataclass, field

MARKS = 2048  # a run of weeks must not fill the launcher's memory: older ones are thinned out


@dataclass
class Track:
    """Marks (step, when), both ascending. Between two marks steps are taken to be even."""

    _steps: list[int] = field(default_factory=list)
    _times: list[float] = field(default_factory=list)

    @property
    def furthest(self) -> int:
        """0 before the first step."""
        return self._steps[-1] if self._steps else 0

    @property
    def moved_at(self) -> float | None:
        """When the furthest step was made."""
        return self._times[-1] if self._times else None

    def reached(self, step: int, at: float) -> None:
        if self._steps and step <= self._steps[-1]:
            return
        self._steps.append(step)
        self._times.append(max(at, self._times[-1]) if self._times else at)
        if len(self._steps) > MARKS:
            half = MARKS // 2
            self._steps[:half] = self._steps[:half:2]
            self._times[:half] = self._times[:half:2]

    def seconds_between(self, step: int, end: float) -> float:
        """From when `step` was made to `end`."""
        return max(0.0, end - self._when(step)) if self._steps else 0.0

    def go_back(self, step: int, now: float) -> None:
        """Training goes on from `step` now. What lies before it moves along, so that no second is lost twice."""
        if not self._steps or step >= self._steps[-1]:
            return
        shift = now - self._when(step)
        kept = bisect_left(self._steps, step)
        self._steps = [*self._steps[:kept], step]
        self._times = [*(at + shift for at in self._times[:kept]), now]

    def _when(self, step: int) -> float:
        right = bisect_left(self._steps, step)
        if right == len(self._steps):
            return self._times[-1]
        if right == 0 or self._steps[right] == step:
            return self._times[right]
        (first, last), (began, ended) = self._steps[right - 1 : right + 1], self._times[right - 1 : right + 1]
        return began + (ended - began) * (step - first) / (last - first)
