"""Estimates how long the runs of a sweep will still take, from those that have been timed.

A run takes the time of its steps, which grows with its multiply-adds, and an overhead: start-up,
evaluations and the compilation of its programs. The first run of a network compiles them. Later
ones with other seeds load them, which is much faster.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Timed(NamedTuple):
    """What is known of a run.

    - `network`: equal for runs that share their compiled programs.
    - `work`, `work_left`: multiply-adds of all its steps, and of those to come.
    - `speed`: multiply-adds a second in its steps, after the first record. None: not measured.
    - `seconds`: what it took. None if it has not finished, or not in one attempt.
    """

    network: Hashable
    depth: int
    work: float
    work_left: float
    speed: float | None
    seconds: float | None

    @property
    def overhead(self) -> float | None:
        """Seconds beside its steps."""
        if not self.seconds or not self.speed:
            return None
        return max(0.0, self.seconds - self.work / self.speed)


def seconds_left(runs: Sequence[Timed]) -> float | None:
    """The time that all runs still take, one after another. None before anything is measured.

    `runs`: in the order in which they begin.
    """
    timed = [(run.work - run.work_left, run.speed) for run in runs if run.speed]
    if not timed:
        return None
    speed = sum(work for work, _ in timed) / sum(work / speed for work, speed in timed)
    first = [run.network not in [other.network for other in runs[:i]] for i, run in enumerate(runs)]
    fresh = [run for run, is_first in zip(runs, first, strict=True) if is_first]
    again = [run for run, is_first in zip(runs, first, strict=True) if not is_first]
    by_depth, start_up = _line(fresh)
    known = [run.overhead for run in again if run.overhead is not None]
    of_again = float(np.mean(known)) if known else start_up
    left = 0.0
    for run, is_first in zip(runs, first, strict=True):
        left += run.work_left / speed
        if run.work_left == run.work:
            left += start_up + by_depth * run.depth if is_first else of_again
    return left


def _line(runs: Sequence[Timed]) -> tuple[float, float]:
    """Overhead by depth, as a line: seconds a layer, and seconds beside that, both at least 0."""
    points = [(run.depth, run.overhead) for run in runs if run.overhead is not None]
    if not points:
        return 0.0, 0.0
    depths, overheads = np.array(points, float).T
    if len(set(depths)) == 1:
        return 0.0, float(overheads.mean())
    slope, rest = np.polyfit(depths, overheads, 1)
    if slope < 0:
        return 0.0, float(overheads.mean())
    if rest < 0:
        return float(overheads.mean() / depths.mean()), 0.0
    return float(slope), float(rest)
