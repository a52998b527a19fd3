"""Times the same networks in PyTorch, as `worker.py` times ours. Imports only PyTorch.

The batch is fixed and already on the device. Nothing is augmented. Arguments: `worker.py`.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """A basic block with shortcut A (without it: plain), or a bottleneck with shortcut B."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, residual: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            layers = [conv(inputs, width, 1, stride), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [conv(width, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [conv(width, outputs, 1), nn.BatchNorm2d(outputs)]
        else:
            layers = [conv(inputs, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [conv(width, width, 3), nn.BatchNorm2d(width)]
        self.f = nn.Sequential(*layers)
        self.residual, self.stride, self.more = residual, stride, outputs - inputs
        self.projection = None
        if bottleneck and self.more:
            self.projection = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.f(x)
        if not self.residual:
            return F.relu(y)
        if self.projection is not None:
            x = self.projection(x)
        elif self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(y + x)


def network(case: dict[str, Any]) -> nn.Module:
    """Builds the network of a case."""
    imagenet = case["family"] == "imagenet"
    counts = (3, 4, 6, 3) if imagenet else ((case["depth"] - 2) // 6,) * 3
    widths = (64, 128, 256, 512) if imagenet else (16, 32, 64)
    if imagenet and case["depth"] != 50:
        raise ValueError(f"Expected depth 50 for ImageNet, got {case['depth']}.")
    stem = conv(case["channels"], widths[0], 7 if imagenet else 3, 2 if imagenet else 1)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(widths[0]), nn.ReLU()]
    if imagenet:
        layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = widths[0]
    for stage, (count, width) in enumerate(zip(counts, widths, strict=True)):
        for i in range(count):
            stride = 2 if stage and not i else 1
            layers.append(Block(inputs, width, stride, imagenet, case["shortcut"] != "none"))
            inputs = 4 * width if imagenet else width
    classes = 1000 if imagenet else 10
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def build(case: dict[str, Any]) -> Callable[[], float]:
    """Returns a function that runs a few steps and returns milliseconds a step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True  # As XLA does, it tries the convolutions of a GPU.
    layout = torch.channels_last if case["channels_last"] else torch.contiguous_format
    model = network(case).train().to(device, memory_format=layout)
    shape = case["batch_size"], case["channels"], case["size"], case["size"]
    x = torch.randn(shape, device=device).to(memory_format=layout)
    y = torch.randint(0, 10, shape[:1], device=device)
    if case["compile"]:
        model = torch.compile(model, mode=case["compile"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4)
    half = case["dtype"] == "bfloat16"

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    def run() -> float:
        start = time.perf_counter()
        for _ in range(case["steps_per_dispatch"]):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / case["steps_per_dispatch"] * 1000

    return run


def main(case: dict[str, Any], platform: str = "") -> None:
    found = "gpu" if torch.cuda.is_available() else "cpu"
    if platform not in ("", found):
        sys.exit(f"Expected a {platform}, PyTorch found a {found}.")
    run = build(case)
    start = time.perf_counter()
    for _ in range(2):
        run()
    print(json.dumps({"compile_s": time.perf_counter() - start, "platform": found}), flush=True)
    for _ in sys.stdin:
        print(run(), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), *sys.argv[2:])
