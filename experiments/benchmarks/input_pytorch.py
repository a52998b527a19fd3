"""Times the input of `input_pipeline.py` with PyTorch's loader and Pillow."""

import functools
import json
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


class Crops(torch.utils.data.Dataset):
    """Endless random crops, uint8 [3, size, size], of the files in a folder."""

    def __init__(self, folder: str, crop: str, size: int, shorter: Sequence[int]):
        self.paths = sorted(Path(folder).iterdir())
        scaled = functools.partial(scale_crop, size=size, shorter=shorter)
        self.crop = scaled if crop == "scale" else functools.partial(inception_crop, size=size)

    def __len__(self) -> int:
        return 10**7

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index * 7919 % len(self.paths)]) as image:
            crop = self.crop(image.convert("RGB"))
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


def scale_crop(image: Image.Image, size: int, shorter: Sequence[int]) -> Image.Image:
    """Resizes the image to a random shorter side, then crops it."""
    side = random.randint(*shorter)
    factor = side / min(image.size)
    image = image.resize([round(length * factor) for length in image.size], Image.BILINEAR)
    left = random.randint(0, image.width - size)
    top = random.randint(0, image.height - size)
    return image.crop((left, top, left + size, top + size))


def inception_crop(image: Image.Image, size: int) -> Image.Image:
    """Crops as torchvision's RandomResizedCrop: 8 to 100 % of the area, ratio 3/4 to 4/3."""
    width, height = image.size
    w = h = min(image.size)
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        tried = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < tried[0] <= width and 0 < tried[1] <= height:
            w, h = tried
            break
    left, top = random.randint(0, width - w), random.randint(0, height - h)
    crop = image.crop((left, top, left + w, top + h))
    return crop.resize((size, size), Image.BILINEAR)


def main(case: dict[str, Any]) -> None:
    cores = case["cores"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        Crops(case["folder"], case["crop"], case["size"], case["shorter"]),
        batch_size=case["batch_size"],
        num_workers=cores if cores > 1 else 0,
    )
    batches = iter(loader)
    next(batches)
    print("{}", flush=True)
    for _ in sys.stdin:
        for _ in range(case["drained"] if cores > 1 else 0):
            next(batches)
        start = time.perf_counter()
        for _ in range(case["timed"]):
            next(batches)
        print((time.perf_counter() - start) / case["timed"] * 1e3, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
