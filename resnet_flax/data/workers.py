"""Worker processes that read and cut images before they are needed: the only importer of Grain."""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import grain
from absl import flags

from resnet_flax.data import decoding
from resnet_flax.data.stream import Batch, EvaluationBatches, TrainingBatches
from resnet_flax.errors import GOES_ON, FaultError
from resnet_flax.runtime import cpu

T = TypeVar("T")
_LEFT_BEHIND = "ignore:resource_tracker:UserWarning"


@contextlib.contextmanager
def in_background(
    load: TrainingBatches | EvaluationBatches,
    then: Callable[[Batch], T],
    say: Callable[[str], None],
) -> Iterator[Iterator[T]]:
    """Yields an iterator over `then(load(i))` for all i in order, computed before they are needed.

    - `load`: is sent to worker processes and called there. RESNET_FLAX_WORKERS sets their number;
      the default is one per core.
    - `then`: is called in a thread of this process.
    - `say`: gets a line on damaged images when the context ends.

    Workers and thread end with the context. Raises FaultError if a worker dies.
    """
    if not flags.FLAGS.is_parsed():  # In a notebook nobody parses flags, but Grain reads its own.
        flags.FLAGS.mark_as_parsed()
    _hush_resource_tracker()
    damaged: set[int] = set()

    def arrived(batch: Batch) -> T:
        damaged.update(batch.damaged[batch.damaged >= 0].tolist())
        return then(batch)

    dataset = (
        grain.MapDataset.range(len(load))
        .map(load)
        # No prefetching here: a worker is one thread, and has its own buffer for finished batches.
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .mp_prefetch(
            grain.MultiprocessingOptions(cpu.workers(len(load)), per_worker_buffer_size=2),
            _in_worker,
        )
        .map(arrived)
    )
    dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)
    batches = iter(dataset)
    with _signals_held_back():
        batches.start_prefetch()
    try:
        yield _explained(batches)
    finally:
        batches.close()
        # Grain's iterators refer to themselves, and so keep batches in shared memory.
        del batches
        gc.collect()
        if damaged:
            say(_damage(f"{load.stream.name} {load.stream.split}", sorted(damaged)))


def _hush_resource_tracker() -> None:
    """Keeps Python's resource tracker from warning.

    It is a process that removes the shared memory of killed processes.
    """
    filters = os.environ.get("PYTHONWARNINGS", "")
    if _LEFT_BEHIND not in filters:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [filters, _LEFT_BEHIND]))


def _damage(name: str, positions: list[int]) -> str:
    shown = ", ".join(map(str, positions[:20])) + (", ..." if len(positions) > 20 else "")
    return (
        f"Damaged images in {name}: {len(positions)}, at positions {shown}; the part of each that"
        " could be decoded is used."
    )


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Blocks stop signals for good in threads and processes that start inside the context.

    So only this process handles a signal to the process group.
    """
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _explained(batches: Iterator[T]) -> Iterator[T]:
    try:
        yield from batches
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        code = str(error).partition("exit code ")[2].partition(".")[0]
        raise FaultError(
            f"A worker process that reads images died with exit code {code}. For -9 (often too"
            f" little memory), set {cpu.WORKERS} to a smaller number; for -7 (too little /dev/shm,"
            " as in containers), enlarge it, for example by `docker run --shm-size=4g`;"
            f' for 1, check that your script has `if __name__ == "__main__":`. {GOES_ON}'
        ) from error


def _in_worker(number: int, count: int) -> None:
    """Makes a worker process use one core, and end when its parent ends."""
    del number, count
    decoding.use_one_core()
    warnings.simplefilter("ignore")  # Decoders warn about odd images that they can decode.
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
