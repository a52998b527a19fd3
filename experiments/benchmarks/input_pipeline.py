"""Times JPEG files to batches of crops: ours, PyTorch's loader with Pillow, and tf.data.

All read the same files, which are in the page cache already, and give uint8 batches in host memory.
Each is timed on one core, and with two processes or threads on two cores.
"""

import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from experiments.benchmarks.turns import Row, alternate
from resnet_flax.data.stream import Crops, Stream, TrainingBatches, open_stream
from resnet_flax.data.workers import in_background

DATA_SET, SPLIT = "caltech_subset", "train"
MEAN = (123.675, 116.28, 103.53)
SIZE, SHORTER = 224, (256, 480)
BATCH_SIZE = 64
# `drained` batches are read before the clock starts: they may have been made in others' turns.
FIXED = {"size": SIZE, "shorter": SHORTER, "batch_size": BATCH_SIZE, "drained": 10, "timed": 16}
EPOCHS = 3
# The size of most images of ImageNet (image-net.org): 500 x 375.
ENLARGED = (500, 375)


class Files:
    """A folder of JPEG files with the methods of a TFDS data source."""

    def __init__(self, folder: str):
        self.paths = sorted(str(path) for path in Path(folder).iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [{"image": Path(self.paths[i]).read_bytes(), "label": 0} for i in indices]


def measure(rounds: int, torch: str | None, tensorflow: str | None) -> Iterator[Row]:
    """Images a second of whole pipelines, by size of the files, crop and number of cores."""
    others = {"PyTorch loader, Pillow": (torch, "pytorch"), "tf.data": (tensorflow, "tensorflow")}
    for files, enlarged in (("as they are", None), ("500 x 375", ENLARGED)):
        with tempfile.TemporaryDirectory() as folder:
            sizes = _write_files(folder, enlarged)
            for crop in ("scale", "inception"):
                for cores in (1, 2):
                    case = {"folder": folder, "crop": crop, "cores": cores, **FIXED}
                    cases: dict[str, tuple[Sequence[str], dict[str, Any]]]
                    cases = {
                        "ours": (
                            (sys.executable, "-m", "experiments.benchmarks.input_pipeline"),
                            case,
                        )
                    }
                    for name, (python, file) in others.items():
                        if python:
                            command = (python, f"experiments/benchmarks/input_{file}.py")
                            cases[name] = command, case
                    rows = alternate(cases, rounds)
                    for row in rows:
                        times = {"ours_is_times_as_fast": row["step_ms"] / rows[0]["step_ms"]}
                        shown = {"files": files, "kb": sizes / 1e3, "crop": crop, "cores": cores}
                        yield shown | _rates(row) | times


def _rates(row: Row) -> Row:
    """Turns milliseconds a batch into images a second."""
    rate = {name: BATCH_SIZE * 1e3 / row[f"{name}_ms"] for name in ("step", "max", "min")}
    return {
        "program": row["program"],
        "images_per_s": rate["step"],
        "min": rate["max"],
        "max": rate["min"],
        "runs": row["runs"],
    }


def _write_files(folder: str, size: tuple[int, int] | None) -> float:
    """Writes the split's JPEG files, enlarged to `size` if given. Returns their mean bytes."""
    stream = _stream()
    total = 0
    for number, encoded in enumerate(stream.encoded()):
        if size:
            image = Image.open(io.BytesIO(encoded)).convert("RGB")
            across = size if image.width >= image.height else size[::-1]
            file = io.BytesIO()
            image.resize(across, Image.BICUBIC).save(file, "JPEG", quality=92)
            encoded = file.getvalue()
        Path(folder, f"{number:05}.jpg").write_bytes(encoded)
        total += len(encoded)
    return total / stream.size


def _stream() -> Stream:
    return open_stream(DATA_SET, SPLIT, Crops("scale", SIZE, SHORTER), MEAN)


def measure_loop() -> Iterator[Row]:
    """Time that training of a cheap network waits for its images, and memory, by epoch."""
    _stream()  # It raises UserError without the set.
    command = [sys.executable, "-m", "experiments.benchmarks.input_pipeline", "loop"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in lines.splitlines():
        yield json.loads(line)


def loop() -> Iterator[Row]:
    """Trains a narrow ResNet-18 on a stream as a run does, in a process of its own."""
    from resnet_flax.runtime import cpu

    cpu.keep_barriers()
    import jax
    import jax.numpy as jnp

    from resnet_flax.models.catalogue import build_resnet
    from resnet_flax.models.cpu_convolution import conv_general_dilated
    from resnet_flax.runtime.parallel import Devices
    from resnet_flax.training import optim, steps
    from resnet_flax.training.feed import StreamFeed

    cpu.use_cores(BATCH_SIZE)
    devices, optimizer = Devices(), optim.sgd(lambda _: 0.01)
    stream = _stream()
    hook = conv_general_dilated if devices.platform == "cpu" else None
    model = build_resnet(
        "imagenet", 18, "pad", (8, 8, 16, 16), num_classes=27, conv_general_dilated=hook
    )
    mean, shape = jnp.asarray(stream.image_mean()), stream.image_shape
    state = devices.replicate(steps.init_state(model, optimizer, 0, mean, shape))
    step = devices.map(
        steps.train_steps,
        sharded=(False, False, True),
        donate=0,
        model=model,
        optimizer=optimizer,
        pad=0,
        flip=True,
        color=True,
        log_every=100,
    )
    per_epoch = -(-stream.size // BATCH_SIZE)
    with StreamFeed(stream, devices, print).training(
        0, BATCH_SIZE, range(1 + EPOCHS * per_epoch), 1
    ) as batches:
        state = jax.block_until_ready(step(state, None, next(batches)))  # Compiles.
        for epoch in range(EPOCHS):
            waited, start = 0.0, time.perf_counter()
            for _ in range(per_epoch):
                before = time.perf_counter()
                fed = next(batches)
                jax.block_until_ready(fed)
                waited += time.perf_counter() - before
                state = jax.block_until_ready(step(state, None, fed))
            seconds = time.perf_counter() - start
            gc.collect()
            me = psutil.Process()
            resident = [p.memory_info().rss / 2**20 for p in (me, *me.children())]
            yield {
                "epoch": epoch + 1,
                "step_ms": seconds / per_epoch * 1e3,
                "waited_ms": waited / per_epoch * 1e3,
                "waited_share": waited / seconds,
                "resident_mib": resident[0],
                "of_workers_mib": sum(resident[1:]),
            }


def _build(case: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    """Yields a function that returns the next batch. Its workers end with the generator."""
    stream = Stream(
        case["folder"],
        "",
        Files(case["folder"]),
        "image",
        "label",
        2,
        Crops(case["crop"], SIZE, SHORTER),
        MEAN,
    )
    load = TrainingBatches(stream, 0, BATCH_SIZE, np.arange(BATCH_SIZE), range(10**5), 1)
    if case["cores"] == 1:
        numbers = iter(range(len(load)))
        yield lambda: load(next(numbers))
    else:
        os.environ["RESNET_FLAX_WORKERS"] = str(case["cores"])
        with in_background(load, lambda batch: batch, print) as batches:
            yield lambda: next(batches)


def main(argument: str) -> None:
    if argument == "loop":
        for row in loop():
            print(json.dumps(row), flush=True)
        return
    case = json.loads(argument)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["cores"]])
    for batch in _build(case):
        batch()
        print("{}", flush=True)
        for _ in sys.stdin:
            for _ in range(case["drained"] if case["cores"] > 1 else 0):
                batch()
            start = time.perf_counter()
            for _ in range(case["timed"]):
                batch()
            print((time.perf_counter() - start) / case["timed"] * 1e3, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
