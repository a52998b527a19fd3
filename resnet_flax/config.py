"""The fields of a run's config: their types and their meaning. The values are in `configs/`.

Values of the method that one may want to vary are fields here, not constants in the code.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt

from resnet_flax.errors import UserError
from resnet_flax.models.blocks import BLOCKS
from resnet_flax.models.resnet import Init, Norm, Part, Shortcut
from resnet_flax.runtime.parallel import Backend

S = TypeVar("S", bound="Section")
Count = Annotated[int, Field(ge=1, lt=2**31)]
"""A number of steps or images. Devices count in int32."""
Step = Annotated[int, Field(ge=0, lt=2**31)]
LARGEST_SIDE = 4096  # Pixels.
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
"""Side of an image, in pixels."""


class Section(pydantic.BaseModel):
    """A part of a config. Unknown fields and wrong types are refused; no type is converted.

    A field without a default is required. A field with a default was added later: its default is
    how older runs behaved. `data_dir` has a default because no run's folder records it.
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


def _block(name: str) -> str:
    if name not in BLOCKS:
        raise ValueError(f"expected a block in {tuple(BLOCKS)}, got {name!r}")
    return name


class ModelConfig(Section):
    """The network. A plain network and its residual twin differ only in `shortcut`."""

    family: Literal["cifar", "imagenet", "vgg"]
    depth: int
    shortcut: Shortcut
    """`none` (plain), `pad` (option A), `projection` (B), `projection_all` (C)."""
    shortcut_scale: float = 1.0
    """A factor of the shortcut: y = relu(F(x) + a h(x))."""
    zero_init_residual: bool = False
    """Whether the scale of the last BN in F begins at 0, so that a block begins as its shortcut.
    With `bn_bias`, F begins as that bias instead."""
    negative_slope: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Slope of the activation below 0. 0: ReLU; between: leaky ReLU; 1: no activation."""
    init: Init = "he"
    """Initial kernels. `he`: Gaussian (Sec. 3.4). `looks_linear`: a plain network begins as a
    linear function, see resnet_flax/models/looks_linear.py."""
    bn_bias: float = 0.0
    """What the biases of BN are at first."""
    block: Annotated[str, AfterValidator(_block)] = "postactivation"
    """A name in `BLOCKS` of resnet_flax/models/blocks.py. `postactivation`: the paper's block."""
    widths: tuple[PositiveInt, ...]
    """Channels of the 3x3 convolutions of each stage. Empty: as in the paper. The first is also the
    width of the first layer. A bottleneck ends with four times as many channels."""
    bottleneck_stride: Literal["1x1", "3x3"]
    """Which convolution of a bottleneck has the stride: `1x1` as in the paper, `3x3` as in v1.5."""
    dtype: Literal["float32", "bfloat16"]
    """Type of the computation. Parameters, statistics and loss are always float32. By default, JAX
    multiplies float32 in bfloat16 on a TPU and may use TF32 on a GPU. The variable
    JAX_DEFAULT_MATMUL_PRECISION=highest forbids both."""
    bn_momentum: Annotated[float, Field(ge=0, lt=1)]
    """Share of the old running average that a step keeps. PyTorch's momentum 0.1 is 0.9 here."""
    bn_epsilon: Annotated[float, Field(gt=0)]
    bn_scope: Literal["device", "global"]
    """Images that BN statistics cover. `device`: one device's share, and running statistics are
    averaged over devices. `global`: the whole batch."""
    norm: Norm = "batch"
    """`batch`: BN where the block has it. `none`: no BN, and a bias in every convolution."""
    scan: Literal["auto", "on", "off"] = "off"
    """Whether the equal blocks of a stage are compiled once and run in a loop. Results are equal up
    to rounding. `auto`: on in CIFAR networks of more than 110 layers."""
    remat: bool = False
    """Whether the backward pass recomputes each block from its input, which saves memory."""

    @property
    def normalises_shares(self) -> bool:
        """Whether BN's statistics are of one device's share of the batch."""
        return self.family != "vgg" and self.norm == "batch" and self.bn_scope == "device"


class OptimConfig(Section):
    """SGD, Sec. 3.4 and 4.2, and what experiments put in its place."""

    lr: NonNegativeFloat
    boundaries: Annotated[tuple[Step, ...], AfterValidator(_ascending)]
    """Steps at which the learning rate is multiplied by `decay_factor`, ascending."""
    decay_factor: NonNegativeFloat
    warmup_steps: Step
    """Number of first steps that use `warmup_lr`."""
    warmup_lr: NonNegativeFloat
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NonNegativeFloat
    decay_bn_and_bias: bool
    """Whether weight decay also applies to BN scales and to all biases, not only to kernels."""
    optimizer: Literal["sgd", "lars", "adam"] = "sgd"
    """`lars`: SGD that scales each kernel's gradient to the norm of the kernel (You et al. 2017).
    `adam`: Kingma and Ba (2015), whose beta 1 is `momentum`."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    clip_norm: NonNegativeFloat = 0.0
    """Longest gradient, as the L2 norm of all parameters that are trained. 0: no limit. It comes
    after the factors of `norms_of` and before weight decay."""
    norms_of: Literal["", "none", "pad"] = ""
    """A value of `model.shortcut`. Each parameter's gradient gets a constant factor. With it, the
    gradient has at first about the norm that it has in the network with that shortcut. The factors
    are measured on one device, with BN over the whole batch. Empty: none."""
    frozen: tuple[Part, ...] = ()
    """Parts of the network that are not trained. BN's running averages still follow."""

    @pydantic.model_validator(mode="after")
    def _of_adam(self) -> Self:
        for name in ("adam_beta2", "adam_epsilon"):
            default = type(self).model_fields[name].default
            if self.optimizer != "adam" and getattr(self, name) != default:
                raise ValueError(
                    f'expected {name}={default} with optimizer="{self.optimizer}", which does not'
                    f" use it, got {getattr(self, name)}"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _of_factors(self) -> Self:
        if self.norms_of and self.optimizer != "sgd":
            raise ValueError(
                f'expected optimizer="sgd" with norms_of="{self.norms_of}", got "{self.optimizer}",'
                " which takes a constant factor of a gradient away again"
            )
        return self


class DataConfig(Section):
    """A TFDS image classification set."""

    name: Annotated[str, AfterValidator(_data_set)]
    """`name`, `name/config` or `name/config:version`."""
    data_dir: str = ""
    """Folder of the prepared data set. Empty: TFDS_DATA_DIR, or else TFDS's default. A run's folder
    does not record it."""
    train_split: str
    test_split: str
    batch_size: Count
    """Images of one training step, on all devices together."""
    eval_batch_size: Count
    pad: Annotated[int, Field(ge=0, le=LARGEST_SIDE)]
    """Pixels added on each side before the random crop. Fewer than the side of an image."""
    flip: bool
    """Whether each training image is mirrored with probability 1/2."""
    crop: Literal["none", "scale", "inception"] = "none"
    """`none`: all images have one size and are held in memory. Otherwise images may have any size,
    are read when needed, and training uses random crops. `scale`: the paper's (Sec. 3.4).
    `inception`: Inception's."""
    image_size: Side = 224
    """Side of a crop, in pixels."""
    shorter_side: tuple[Side, Side] = (256, 480)
    """Range, in pixels, to which `scale` resizes the shorter side. Evaluation uses the first."""
    channel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Values (0 to 255) subtracted from the pixels of crops. The default is ImageNet's mean."""
    color: bool = False
    """Whether a random shift is added to the colour of training images (Sec. 3.4)."""

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
    """The config of one run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    steps: Count
    log_every: Count
    eval_every: Count
    checkpoint_every: Count
    keep_every: Step = 0
    """Checkpoints at multiples of this are kept, besides the last two and the best. 0: none."""
    init_from: str = ""
    """Folder of another run. Its last checkpoint gives the initial parameters and BN statistics."""
    init_partial: bool = False
    """Whether arrays of one network may have no match of name and shape in the other."""
    steps_per_dispatch: Count
    """Steps that one call of the devices takes. The three intervals must be multiples of it."""
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
    """Checks names, types and ranges. Raises UserError that names the first wrong field.

    `flag`: the command-line flag that gave the config; the message begins with it.
    """

    def refuse(value: Any) -> Any:
        raise UserError(
            f"{flag}: expected plain Python values, such as numbers, text and tuples, got"
            f" {value!r} of type {type(value).__name__}. Convert it, for example with int(value) or"
            " float(value)."
        )

    # Through JSON, so that a config from a file and one from the command line are read alike.
    text = json.dumps(config, default=refuse, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(error.start - 40, 0) : error.end + 20]
        raise UserError(
            f"{flag}: expected text in UTF-8, got ...{near!r}... If it is a path, give the file or"
            " folder another name, or a link with another name."
        ) from error
    try:
        return schema.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join([flag, *map(str, first["loc"])])
        shows = first["loc"] and first["type"] not in ("missing", "value_error")
        got = f", got {first['input']!r}" if shows else ""
        said = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{field}: {said}{got}.") from error


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's config as its folder records it: all fields, as JSON types.

    Raises UserError if the config is wrong.
    """
    return parse(config, RunConfig).model_dump(mode="json")
