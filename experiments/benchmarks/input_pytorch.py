"""Times the input of `input_pipeline.py` with PyTorch's loader and Pillow."""

import json
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIZE, SHORTER, BATCH_SIZE, DRAINED, TIMED = 224, (256, 480), 64, 10, 16


class Crops(torch.utils.data.Dataset):
    """Endless random crops, uint8 [3, SIZE, SIZE], of the files in a folder."""

    def __init__(self, folder: str, crop: str):
        self.paths = sorted(Path(folder).iterdir())
        self.crop = scale_crop if crop == "scale" else inception_crop

    def __len__(self) -> int:
        return 10**7

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index * 7919 % len(self.paths)]) as image:
            crop = self.crop(image.convert("RGB"))
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


def scale_crop(image: Image.Image) -> Image.Image:
    """Resizes the image to a random shorter side, then crops it."""
    side = random.randint(*SHORTER)
    factor = side / min(image.size)
    image = image.resize([round(length * factor) for length in image.size], Image.BILINEAR)
    left = random.randint(0, image.width - SIZE)
    top = random.randint(0, image.height - SIZE)
    return image.crop((left, top, left + SIZE, top + SIZE))


def inception_crop(image: Image.Image) -> Image.Image:
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
    return crop.resize((SIZE, SIZE), Image.BILINEAR)


def main(case: dict[str, Any]) -> None:
    cores = case["cores"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        Crops(case["folder"], case["crop"]),
        batch_size=BATCH_SIZE,
        num_workers=cores if cores > 1 else 0,
    )
    batches = iter(loader)
    next(batches)
    print("{}", flush=True)
    for _ in sys.stdin:
        for _ in range(DRAINED if cores > 1 else 0):
            next(batches)
        start = time.perf_counter()
        for _ in range(TIMED):
            next(batches)
        print((time.perf_counter() - start) / TIMED * 1e3, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
