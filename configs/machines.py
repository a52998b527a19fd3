"""Machines to plan a sweep for: `--machine=configs/machines.py:v5e_64`, `h100_8`, `cpu_2_cores`.

The speed of `cpu_2_cores` was measured with this code. That of the others was not: the plan then
takes the least time of a step that the chip's published peaks allow. To replace it, run
`make benchmark SUITES=accelerator` on the machine. Then give images per second and multiply-adds of
a row `ours, float32` of a network of that data set, such as
--machine.speed.cifar10.images_per_second=N and --machine.speed.cifar10.multiply_adds=M, and set
.measured and .source beside them.

experiments/sweeping/machine.py explains the fields. Each speed is for one chip, one data set, and a
network with the given `multiply_adds`. The speed of others follows from their multiply-adds.
"""

import ml_collections

RESNET56_8X8 = 7_825_024
RESNET56_32X32 = 125_485_696
RESNET18_224X224 = 1_794_805_760
RESNET50_224X224 = 4_089_184_256  # v1.5.

BENCHMARKS = "experiments/results/benchmarks"


def get_config(machine: str = "cpu_2_cores") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    if machine == "v5e_64":
        config.name, config.chips, config.chip = "TPU v5e-64", 64, "v5e"
        _accelerator(config)
    elif machine == "h100_8":
        config.name, config.chips, config.chip = "8 x H100", 8, "h100"
        _accelerator(config)
    elif machine == "cpu_2_cores":
        config.name, config.chips, config.chip = "2 shared CPU cores, as one chip", 1, ""
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
        for data in config.speed:
            config.scaling[data] = _unknown_share()
    else:
        raise ValueError(f"Expected v5e_64, h100_8 or cpu_2_cores, got {machine!r}.")
    return config


def _accelerator(config: ml_collections.ConfigDict) -> None:
    config.startup = _assumed(
        seconds=14.9, source=f"plain56 on 2 CPU cores, cold start: {BENCHMARKS}/start.md"
    )
    config.speed = ml_collections.ConfigDict()
    for data, multiply_adds in (
        ("cifar10", RESNET56_32X32),
        ("imagenet2012", RESNET50_224X224),
    ):
        config.speed[data] = _assumed(
            images_per_second=ml_collections.config_dict.placeholder(float),
            multiply_adds=multiply_adds,
            source="no source given",
        )
    config.scaling = ml_collections.ConfigDict()
    # A batch of 128 hardly fills one chip: experiments/results/accelerators.md.
    config.scaling.cifar10 = _unknown_share()
    config.scaling.imagenet2012 = _assumed(
        share=1.0, source="at best, if sending gradients takes no time"
    )


def _unknown_share() -> ml_collections.ConfigDict:
    return _assumed(share=ml_collections.config_dict.placeholder(float), source="no source given")


def _measured(**fields: float | str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({**fields, "measured": True})


def _assumed(**fields: float | str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({**fields, "measured": False})
