"""The fields of a run's config, their types and what each one means; values stand in `configs/`.

A field without which a result could not be reproduced belongs here, never in the code.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from resnet_flax.errors import UserError
from resnet_flax.models.resnet import Norm, Shortcut
from resnet_flax.runtime.parallel import Backend

S = TypeVar("S", bound="Section")
Side = Annotated[int, Field(ge=1, le=4096)]
"""Of an image, in pixels."""


class Section(pydantic.BaseModel):
    """No field may be unknown, and a type is never guessed.

    Every field must be given, but for those with a default: they came later, and the default is
    what older runs did. `data_dir` has one because no folder records it.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )


def _ascending(steps: tuple[int, ...]) -> tuple[int, ...]:
    if list(steps) != sorted(set(steps)):
        raise ValueError(f"expected ascending steps, got {steps}")
    return steps


def _data_set(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*(/[\w.\-]+)?(:\d+\.\d+\.\d+)?", name):
        raise ValueError(
            "expected NAME, NAME/CONFIG or either with a version, such as cifar10:3.0.2, got"
            f" {name!r}"
        )
    return name


class ModelConfig(Section):
    """The network; `plain` and `residual` twins differ in `shortcut` alone."""

    family: Literal["cifar", "imagenet", "vgg"]
    depth: int
    shortcut: Shortcut
    """`none` (plain), `pad` (option A), `projection` (B), `projection_all` (C)."""
    widths: tuple[PositiveInt, ...]
    """Of the stages; empty: the paper's."""
    bottleneck_stride: Literal["1x1", "3x3"]
    """The convolution of a bottleneck that carries the stride: the paper's, or v1.5's."""
    dtype: Literal["float32", "bfloat16"]
    """Of the computation; parameters, statistics and loss are float32."""
    bn_momentum: Annotated[float, Field(ge=0, lt=1)]
    """Share of the old running average that each step keeps (PyTorch's 0.1 is 0.9 here)."""
    bn_epsilon: Annotated[float, Field(gt=0)]
    bn_scope: Literal["device", "global"]
    """Statistics over a device's images (running ones averaged), or over the global batch."""
    norm: Norm = "batch"
    """`batch`: BN after every convolution; `none`: none, and a bias in each convolution."""
    scan: Literal["auto", "on", "off"] = "off"
    """Whether the equal blocks of a stage are compiled once and looped over; the results are the
    same up to rounding. `auto`: in networks of more than 110 layers."""
    remat: bool = False
    """Whether only the inputs of blocks are kept for the backward pass, to save memory."""


class OptimConfig(Section):
    """SGD, Sec. 3.4 and 4.2."""

    lr: NonNegativeFloat
    boundaries: Annotated[tuple[NonNegativeInt, ...], AfterValidator(_ascending)]
    """Steps at which the rate is multiplied by `decay_factor`, ascending."""
    decay_factor: NonNegativeFloat
    warmup_steps: NonNegativeInt
    """Steps at `warmup_lr` before all else."""
    warmup_lr: NonNegativeFloat
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NonNegativeFloat
    decay_bn_and_bias: bool
    """Whether weight decay covers BN scales and all biases, beside the kernels."""


class DataConfig(Section):
    """A TFDS image classification set."""

    name: Annotated[str, AfterValidator(_data_set)]
    """`name`, `name/config` or `name/config:version`."""
    data_dir: str = ""
    """Where the set was prepared; empty: TFDS_DATA_DIR, else TFDS's default. Not recorded."""
    train_split: str
    test_split: str
    batch_size: PositiveInt
    """Of a training step, over all devices."""
    eval_batch_size: PositiveInt
    pad: NonNegativeInt
    """Pixels added to each side before the random crop."""
    flip: bool
    """Whether half of the training images are mirrored."""
    crop: Literal["none", "scale", "inception"] = "none"
    """`none`: images of one size, held in memory. Otherwise images of any size are read as they are
    needed, and training crops cut at random: of the paper's sizes (Sec. 3.4), or Inception's."""
    image_size: Side = 224
    """Side of a crop."""
    shorter_side: tuple[Side, Side] = (256, 480)
    """Range to which `scale` resizes the shorter side; evaluation takes the first."""
    channel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Subtracted from the pixels of crops, 0 to 255; ImageNet's."""
    color: bool = False
    """Whether the colour of training images is shifted at random (Sec. 3.4)."""

    @pydantic.model_validator(mode="after")
    def _crops_fit(self) -> Self:
        low, high = self.shorter_side
        if not self.image_size <= low <= high:
            raise ValueError(
                "expected image_size <= shorter_side[0] <= shorter_side[1], got"
                f" {self.image_size} and {self.shorter_side}"
            )
        if self.crop != "none" and self.pad:
            raise ValueError(f'expected pad=0 with crop="{self.crop}", got {self.pad}')
        return self


class RunConfig(Section):
    """One run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    steps: PositiveInt
    log_every: PositiveInt
    eval_every: PositiveInt
    checkpoint_every: PositiveInt
    keep_every: NonNegativeInt = 0
    """Checkpoints at multiples of this stay, besides the last two and the best; 0: none."""
    init_from: str = ""
    """The folder of a run whose last checkpoint gives the initial parameters and BN statistics."""
    init_partial: bool = False
    """Whether some of them, on either side, may be without a counterpart of name and shape."""
    steps_per_dispatch: PositiveInt
    """Steps scanned in one call of the device; the three intervals are multiples of it."""
    parallel: Backend
    model: ModelConfig
    optim: OptimConfig
    data: DataConfig

    @pydantic.model_validator(mode="after")
    def _dispatches_end_at_intervals(self) -> Self:
        for name in ("log_every", "eval_every", "checkpoint_every"):
            value = getattr(self, name)
            if value % self.steps_per_dispatch:
                raise ValueError(
                    f"expected {name} to be a multiple of steps_per_dispatch,"
                    f" {self.steps_per_dispatch}, got {value}"
                )
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                "expected keep_every to be a multiple of checkpoint_every,"
                f" {self.checkpoint_every}, got {self.keep_every}"
            )
        return self


def parse(config: Mapping[str, Any], schema: type[S], flag: str = "config") -> S:
    """Checks names, types and ranges. Raises UserError naming the first field that is wrong.

    `flag`: the one that the config was given by.
    """
    try:
        # By way of JSON: a config from a file and one from a command line are read alike.
        return schema.model_validate_json(json.dumps(config))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join([flag, *map(str, first["loc"])])
        shows = first["loc"] and first["type"] not in ("missing", "value_error")
        got = f", got {first['input']!r}" if shows else ""
        said = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{field}: {said}{got}.") from error


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config as its folder records it: every field, in JSON types. Raises UserError."""
    return parse(config, RunConfig).model_dump(mode="json")
