"""Machines to plan a sweep for: `--machine=configs/machines.py:v5e_64`, `h100_8`, `cpu_2_cores`.

Only the numbers of `cpu_2_cores` were measured with this code. The others are assumptions, from
numbers that others published for similar machines. To replace them, run
`make benchmark SUITES=accelerator` on the machine. Then give its result, such as
--machine.speed.cifar10.images_per_second=N, and set .measured and .source beside it.

experiments/plan.py explains the fields. Each speed is for one chip, one data set, and a network
with the given `multiply_adds`. The speed of other networks follows from their multiply-adds.
"""

import ml_collections

RESNET56_8X8 = 7_825_024
RESNET56_32X32 = 125_485_696
RESNET18_224X224 = 1_794_805_760
RESNET50_224X224 = 4_089_184_256  # v1.5, which both sources below trained.

FLAX = "https://github.com/google/flax/tree/main/examples/imagenet (read 2026-11-25)"
NVIDIA = (
    "https://github.com/NVIDIA/DeepLearningExamples/tree/master/PyTorch/Classification/ConvNets"
    "/resnet50v1.5 (container 21.03, read 2026-11-25)"
)
BENCHMARKS = "experiments/results/benchmarks"


def get_config(machine: str = "cpu_2_cores") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    if machine == "v5e_64":
        config.name, config.chips = "TPU v5e-64", 64
        speed = 2022.0, "one TPU v3 chip, ResNet-50 in bfloat16, 125,100 steps of 1,024 on v3-8"
        scaling = (
            0.724,
            "v3-8 to v3-32: 4.4 h and 2.1 h for 125,100 steps, assumed to be of 1,024 images",
        )
        _accelerator(config, speed, scaling, FLAX)
    elif machine == "h100_8":
        config.name, config.chips = "8 x H100", 8
        speed = 2470.0, "one A100, ResNet-50 in mixed precision"
        scaling = 0.943, "1 to 8 A100, 6.72 times, with 256 images each; fewer images scale worse"
        _accelerator(config, speed, scaling, NVIDIA)
    elif machine == "cpu_2_cores":
        config.name, config.chips = "2 shared CPU cores, as one chip", 1
        config.startup = _measured(seconds=4.86, source=f"{BENCHMARKS}/depth.md, as speed.digits")
        config.speed = ml_collections.ConfigDict()
        config.speed.digits = _measured(
            images_per_second=3308.0,
            multiply_adds=RESNET56_8X8,
            source=f"{BENCHMARKS}/depth.md, depth 56, scanned, rematerialised, 38.69 ms a step",
        )
        config.speed.cifar10 = _measured(
            images_per_second=228.8,
            multiply_adds=RESNET56_32X32,
            source=f"{BENCHMARKS}/steps.md, depth 56, our code, 559.33 ms a step",
        )
        config.speed.imagenet2012 = _measured(
            images_per_second=8.0,
            multiply_adds=RESNET18_224X224,
            source="experiments/README.md, resnet18 at 224 pixels",
        )
        config.scaling = ml_collections.ConfigDict()
    else:
        raise ValueError(f"Expected v5e_64, h100_8 or cpu_2_cores, got {machine!r}.")
    return config


def _accelerator(
    config: ml_collections.ConfigDict,
    speed: tuple[float, str],
    scaling: tuple[float, str],
    link: str,
) -> None:
    config.startup = _assumed(
        seconds=15.5, source=f"plain56 on 2 CPU cores, cold start: {BENCHMARKS}/start.md"
    )
    config.speed = ml_collections.ConfigDict()
    # Small networks use a far smaller share of an accelerator's peak. Nobody has measured it.
    config.speed.cifar10 = _assumed(
        images_per_second=ml_collections.config_dict.placeholder(float),
        multiply_adds=RESNET56_32X32,
        source="none given",
    )
    config.speed.imagenet2012 = _assumed(
        images_per_second=speed[0], multiply_adds=RESNET50_224X224, source=f"{speed[1]}: {link}"
    )
    config.scaling = ml_collections.ConfigDict()
    config.scaling.cifar10 = _assumed(
        share=ml_collections.config_dict.placeholder(float), source="none given"
    )
    config.scaling.imagenet2012 = _assumed(share=scaling[0], source=f"{scaling[1]}: {link}")


def _measured(**fields: float | str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({**fields, "measured": True})


def _assumed(**fields: float | str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({**fields, "measured": False})
