"""What PyTorch computes with the networks of transformers, and with some written here.

Runs by itself, in an environment that has PyTorch and not JAX: `python reference_torch.py FOLDER`
writes FOLDER/CASE.npz for each case. `models/test_torch_weights.py` compares.

B, C, H, W: batch, channels, height, width.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 11
WIDTHS = {"cifar": (6, 10, 14), "imagenet": (8, 12, 16, 24)}


class PairOfConvolutions(nn.Module):
    """Two 3x3 convolutions and, unless `padding` is None, what enters added to what leaves.

    That is option A. `padding`: the zero channels are behind the others ("end"), or half of them
    are before ("both"), as in akamaster/pytorch_resnet_cifar10, which adds `planes // 4` each side.
    """

    def __init__(self, before: int, after: int, stride: int, padding: str | None):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        zeros = after - before
        self.zeros = {None: None, "end": [0, zeros], "both": [zeros // 2] * 2}[padding]
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.zeros:
            y = y + F.pad(x[..., :: self.stride, :: self.stride], [0] * 4 + self.zeros)
        return F.relu(y)


class CifarNet(nn.Module):
    """Sec. 4.2: images [B, 3, H, W] -> logits [B, CLASSES]; three stages of pairs.

    `head`: the name of the last layer.
    """

    def __init__(self, depth: int, padding: str | None, head: str = "fc"):
        super().__init__()
        before, pairs = WIDTHS["cifar"][0], (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, before, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(before)
        for stage, width in enumerate(WIDTHS["cifar"], start=1):
            strides = [1 if stage == 1 else 2] + [1] * (pairs - 1)
            inputs = [before] + [width] * (pairs - 1)
            layer = [
                PairOfConvolutions(*shape, padding)
                for shape in zip(inputs, [width] * pairs, strides, strict=True)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*layer))
            before = width
        self.head = head
        setattr(self, head, nn.Linear(before, CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return getattr(self, self.head)(x.mean((2, 3)))


def imagenet_net(depths: tuple[int, ...], bottleneck: bool, stride_in_1x1: bool = False):
    """A ResNet of transformers: images [B, 3, H, W] -> an output with logits [B, CLASSES]."""
    # Not at the top: `reference_preactivation.py` does without, and it takes seconds.
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        layer_type="bottleneck" if bottleneck else "basic",
        depths=depths,
        embedding_size=WIDTHS["imagenet"][0],
        hidden_sizes=[width * (4 if bottleneck else 1) for width in WIDTHS["imagenet"]],
        downsample_in_bottleneck=stride_in_1x1,
        num_labels=CLASSES,
    )
    return ResNetForImageClassification(config)


# What makes the network; how the names of the last norm of each residual branch end; H and W.
basic, bottleneck = "layer.1.normalization", "layer.2.normalization"
CASES = {
    "basic18": (partial(imagenet_net, (2, 2, 2, 2), bottleneck=False), basic, (64, 64)),
    "basic34": (partial(imagenet_net, (3, 4, 6, 3), bottleneck=False), basic, (75, 64)),
    "bottleneck50": (partial(imagenet_net, (3, 4, 6, 3), bottleneck=True), bottleneck, (75, 64)),
    "bottleneck_3x3": (partial(imagenet_net, (2, 1, 2, 1), bottleneck=True), bottleneck, (75, 64)),
    "bottleneck_1x1": (
        partial(imagenet_net, (2, 1, 2, 1), bottleneck=True, stride_in_1x1=True),
        bottleneck,
        (64, 64),
    ),
    "plain8": (partial(CifarNet, 8, None), None, (16, 16)),
    "plain20": (partial(CifarNet, 20, None), None, (16, 16)),
    "residual14_both": (partial(CifarNet, 14, "both", head="linear"), "bn2", (19, 16)),
    "residual8": (partial(CifarNet, 8, "end"), "bn2", (16, 16)),
}


def logits_of(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output = net(images)
    return getattr(output, "logits", output)


def norms_of(net: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: norm for name, norm in net.named_modules() if isinstance(norm, nn.BatchNorm2d)}


@torch.no_grad()
def randomise(net: nn.Module, images: torch.Tensor, branch_end: str | None) -> None:
    """Gives every array values that none has by default, and that keep the logits of order 1.

    A fifth of He's deviation makes variances so small that BN's epsilon shows in the logits. Small
    residual branches keep rounding from growing with depth: with large ones PyTorch's own float32
    and float64 gradients part by up to 5 %, when rounding moves one value across a ReLU's kink.
    """
    for parameter in net.parameters():
        he = (2 / parameter[0].numel()) ** 0.5
        parameter.normal_(std={4: he / 5, 2: he, 1: 0.5}[parameter.ndim])
    for name, norm in norms_of(net).items():
        norm.weight.uniform_(0.5, 1.5)
        if branch_end and name.endswith(branch_end):
            norm.weight /= 5
        norm.momentum = 1  # For once: the running statistics become those of these images.
    logits_of(net.train(), images)
    for norm in norms_of(net).values():
        norm.momentum = 0.1
        norm.running_mean += norm.running_var.sqrt() * (torch.rand_like(norm.bias) - 0.5)
        norm.running_var *= 0.5 + torch.rand_like(norm.bias)


def compute(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """An evaluation, then the loss, gradients and running statistics of a training step."""
    results = {"images": images, "labels": labels}
    results |= {f"state/{name}": array.clone() for name, array in net.state_dict().items()}
    for name, norm in norms_of(net).items():
        norm.register_forward_hook(
            lambda norm, inputs, _, name=name: results.update(
                {f"values/{name}": torch.tensor(inputs[0].numel() // norm.num_features)}
            )
        )
    with torch.no_grad():
        results["eval_logits"] = logits_of(net.eval(), images)
    results["train_logits"] = logits_of(net.train(), images)
    results["loss"] = F.cross_entropy(results["train_logits"], labels)
    results["loss"].backward()
    results |= {f"gradient/{name}": array.grad for name, array in net.named_parameters()}
    results |= {f"stepped/{name}": array for name, array in net.named_buffers()}
    return results


def write(folder: Path, cases: dict) -> None:
    torch.set_num_threads(1)  # More of them wait for each other longer than they compute.
    for seed, (case, (make_net, branch_end, size)) in enumerate(cases.items()):
        torch.manual_seed(seed)
        images, labels = torch.randn(4, 3, *size), torch.randint(CLASSES, (4,))
        random, net = make_net(), make_net()
        randomise(random, images, branch_end)
        # What our converter gives lacks the counters: a strict load takes that too.
        state = {k: v for k, v in random.state_dict().items() if "num_batches" not in k}
        net.load_state_dict(state, strict=True)
        results = compute(net, images, labels)
        np.savez(folder / f"{case}.npz", **{k: v.detach().numpy() for k, v in results.items()})


if __name__ == "__main__":
    write(Path(sys.argv[1]), CASES)
