"""Worker processes that read and cut images ahead of their use: the only importer of Grain."""

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
    """`then(load(i))` for all i in order, some of them ahead of being asked for.

    `load` is called in worker processes (RESNET_FLAX_WORKERS; by default one a core), to which it
    is sent; `then` in a thread of this process. Both end with the context, and `say` then hears of
    damaged images. Raises FaultError where a worker dies.
    """
    if not flags.FLAGS.is_parsed():  # In a notebook: Grain asks for flags of its own.
        flags.FLAGS.mark_as_parsed()
    _hush_resource_tracker()
    damaged: set[int] = set()

    def arrived(batch: Batch) -> T:
        damaged.update(batch.damaged[batch.damaged >= 0].tolist())
        return then(batch)

    dataset = (
        grain.MapDataset.range(len(load))
        .map(load)
        # One batch at a time: a worker is one thread, and what waits is in its buffer.
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
        # Grain's iterators hold themselves, and with them batches in shared memory.
        del batches
        gc.collect()
        if damaged:
            say(_damage(f"{load.stream.name} {load.stream.split}", sorted(damaged)))


def _hush_resource_tracker() -> None:
    """Python's process that removes what killed processes left need not warn of it."""
    filters = os.environ.get("PYTHONWARNINGS", "")
    if _LEFT_BEHIND not in filters:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [filters, _LEFT_BEHIND]))


def _damage(name: str, positions: list[int]) -> str:
    shown = ", ".join(map(str, positions[:20])) + (", ..." if len(positions) > 20 else "")
    return (
        f"Damaged images in {name}: {len(positions)}, at positions {shown}; what could be decoded"
        " of them is used."
    )


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """For threads and processes begun within, for good: a signal to the group is the parent's."""
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
            f"A worker process that reads images died with exit code {code} (-9 is often a lack of"
            f" memory, -7 of /dev/shm, and {cpu.WORKERS} sets how many there are; 1 can be a script"
            f' without `if __name__ == "__main__":`). {GOES_ON}'
        ) from error


def _in_worker(number: int, count: int) -> None:
    """Makes a process read images on one core, and live no longer than its parent."""
    del number, count
    decoding.use_one_core()
    warnings.simplefilter("ignore")  # Of what is odd in an image, where it could be decoded.
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
