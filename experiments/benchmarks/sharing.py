"""Measures whether several runs on one device train faster together than one after another.

As a program, it takes the fields of a network as JSON and prints each row as JSON.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

from experiments.benchmarks.turns import Row, Worker, ours

COUNTS = (1, 2, 4)
DISPATCHES = 10
# More runs at once must train this much faster in all.
GAIN = 1.1


def measure(fields: Mapping[str, Any], counts: Sequence[int] = COUNTS) -> Iterator[Row]:
    """Steps a second of so many processes at once, each with the same network.

    `fields`: of the network, as `worker.Case` has them.
    """
    with ExitStack() as stack, ThreadPoolExecutor(max(counts)) as pool:
        started = pool.map(lambda _: Worker(*ours(**fields, devices=1)), range(max(counts)))
        workers = [stack.enter_context(closing(worker)) for worker in started]
        for count in counts:
            list(pool.map(Worker.run, workers[:count]))  # The first call is slower.
            start = time.perf_counter()
            list(pool.map(_dispatches, workers[:count]))
            seconds = time.perf_counter() - start
            yield {"runs_at_once": count, "dispatches_per_s": count * DISPATCHES / seconds}


def best(rows: Sequence[Row]) -> int:
    """The number of runs at once. More runs must pay by GAIN."""
    chosen = rows[0]
    for row in rows[1:]:
        if row["dispatches_per_s"] >= GAIN * chosen["dispatches_per_s"]:
            chosen = row
    return int(chosen["runs_at_once"])


def _dispatches(worker: Worker) -> None:
    for _ in range(DISPATCHES):
        worker.run()


if __name__ == "__main__":
    for row in measure(json.loads(sys.argv[1])):
        print(json.dumps(row), flush=True)
