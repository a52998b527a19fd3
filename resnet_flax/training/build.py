"""Turns a config into the parts of a run, or raises a one-line error that says what is wrong.

The functions that this file calls take typed arguments, not the config.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from resnet_flax.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from resnet_flax.data import augment, sources
from resnet_flax.data.sources import Described, Split
from resnet_flax.data.stream import Crops, Stream, open_stream
from resnet_flax.errors import UserError
from resnet_flax.models import vgg
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.models.cpu_convolution import conv_general_dilated
from resnet_flax.models.resnet import ResNet
from resnet_flax.runtime.parallel import DATA_AXIS, Backend, Devices
from resnet_flax.training import optim, steps
from resnet_flax.training.feed import Feed, ResidentFeed, StreamFeed
from resnet_flax.training.steps import Batch

# With `model.scan="auto"`, CIFAR networks deeper than this are scanned: see
# experiments/results/benchmarks. Those of ImageNet have at most 50 blocks, and scanned take three
# times the memory: see experiments/results/accelerators.md.
DEEPEST_UNROLLED = 110
# Fields of `config.data` that only crops use.
OF_CROPS = ("image_size", "shorter_side", "channel_mean")
# What a config of VGG may have in fields of other networks.
WITHOUT_BLOCKS = {
    "shortcut": ("none",),
    "widths": ((),),
    "block": ("postactivation",),
    "scan": ("auto", "off"),
    "remat": (False,),
    "shortcut_scale": (1.0,),
    "zero_init_residual": (False,),
    "negative_slope": (0.0,),
    "init": ("he",),
    "bn_bias": (0.0,),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """The parts of a run from which its steps are compiled, built and checked."""

    config: RunConfig
    images: Described
    """The training images."""
    model: nn.Module
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    devices: Devices


@dataclasses.dataclass(frozen=True)
class Experiment(Program):
    """The parts of a run. Nothing is compiled or written yet."""

    train: Split | Stream
    test: Split | Stream


def build(config: RunConfig, devices: Devices | None = None) -> Experiment:
    """Checks that the fields of a config fit together, and reads its data. Raises UserError.

    `devices`: the devices that the run uses. Default: all.
    """
    data = config.data
    devices = devices or Devices(config.parallel)
    _check_before_data(config, devices)
    train, test = (open_split(data, split) for split in (data.train_split, data.test_split))
    images = Described(train.image_shape, train.num_classes, train.size, isinstance(train, Split))
    parts = _program(config, images, devices)
    return Experiment(**vars(parts), train=train, test=test)


def describe(config: RunConfig, devices: Devices) -> Program:
    """The parts from which the steps of a run are compiled. It reads no images.

    `devices`: the process may have none of them. Raises UserError as `build` does, but for what
    only the images tell: whether all have one size and, of a stream, how many there are. A set that
    fits in memory must be prepared: its description then has the number of images.
    """
    _check_before_data(config, devices)
    data = config.data
    image_shape, num_classes = trained_images(data)
    resident = data.crop == "none"
    size = sources.count(data.name, data.train_split, data.data_dir) if resident else None
    return _program(config, Described(image_shape, num_classes, size, resident), devices)


def _check_before_data(config: RunConfig, devices: Devices) -> None:
    network = build_model(config.model, num_classes=1)  # Any class count will do.
    if missing := sorted(set(config.optim.frozen) - set(network.part_names)):
        raise UserError(
            f"Expected optim.frozen in {network.part_names} for this network, got {missing}."
        )
    for twin in twins(config):
        try:
            build_model(twin, num_classes=1)
        except UserError as error:
            named = f"optim.norms_of={config.optim.norms_of!r}"
            raise UserError(f"Cannot build the network of {named}: {error}") from error
    for field in OF_CROPS if config.data.crop == "none" else ():
        default = DataConfig.model_fields[field].default
        if (got := getattr(config.data, field)) != default:
            raise UserError(
                f'Expected data.{field}={default} with data.crop="none", which resizes no image,'
                f' got {got}; leave it out, or give data.crop="scale" or "inception".'
            )
    devices.check_divisible("data.batch_size", config.data.batch_size)


def _program(config: RunConfig, images: Described, devices: Devices) -> Program:
    data = config.data
    if images.size is not None and data.batch_size > images.size:
        raise UserError(
            f"Expected data.batch_size of at most {images.size}, the images of"
            f" data.train_split={data.train_split!r}, got {data.batch_size}. Give a smaller batch"
            " or a larger split."
        )
    check_image_shape(config.model, images.image_shape)
    if data.color and images.image_shape[-1] != 3:
        raise UserError(
            "Expected data.color=False for images without three colours, got data.color=True and"
            f" images of shape {images.image_shape}."
        )
    schedule = build_schedule(config.optim)
    return Program(
        config=config,
        images=images,
        model=build_model(config.model, images.num_classes, devices.platform),
        schedule=schedule,
        optimizer=build_optimizer(config.optim, schedule),
        devices=devices,
    )


def map_training(program: Program) -> Callable[..., Any]:
    """`steps.train_steps` of a run, mapped over its devices. It donates the state."""
    config = program.config
    return program.devices.map(
        steps.train_steps,
        sharded=(False, False, True),
        donate=0,
        model=program.model,
        optimizer=program.optimizer,
        pad=config.data.pad,
        flip=config.data.flip,
        color=config.data.color,
        log_every=config.log_every,
    )


def twins(config: RunConfig) -> tuple[ModelConfig, ...]:
    """The network of `optim.norms_of`, if the config names one.

    Raises UserError if the two networks have different parameters.
    """
    model, shortcut = config.model, config.optim.norms_of
    if not shortcut:
        return ()
    if model.family == "vgg":
        raise UserError(
            f'Expected optim.norms_of="" for VGG, which has no shortcuts, got {shortcut!r}.'
        )
    if model.shortcut not in ("none", "pad") or model.shortcut == shortcut:
        raise UserError(
            'Expected optim.norms_of="" or model.shortcut in ("none", "pad") and another of the two'
            f" in optim.norms_of, got model.shortcut={model.shortcut!r} and {shortcut!r}."
        )
    # The twin takes its parameters from this network, so it needs no initial values.
    twin = {"shortcut": shortcut, "shortcut_scale": 1.0, "init": "he"}
    if model.zero_init_residual:
        raise UserError(
            f"Expected model.zero_init_residual=False with optim.norms_of={shortcut!r}, got True:"
            " some gradients are 0 at first."
        )
    return (model.model_copy(update=twin),)


def open_split(config: DataConfig, split: str) -> Split | Stream:
    """Opens a split: in memory if `config.crop` is `none`, otherwise as a stream."""
    if config.crop == "none":
        return sources.load_split(config.name, split, config.data_dir)
    crops = Crops(config.crop, config.image_size, config.shorter_side)
    return open_stream(config.name, split, crops, config.channel_mean, config.data_dir)


def trained_images(config: DataConfig) -> tuple[tuple[int, int, int], int]:
    """Shape (H, W, C) of the images that a network trains on, and the class count.

    It reads no images.
    """
    image_shape, num_classes = sources.describe(config.name, config.data_dir)
    if config.crop != "none":
        image_shape = (config.image_size, config.image_size, 3)
    return image_shape, num_classes


def feed(split: Split | Stream, devices: Devices, say: Callable[[str], None]) -> Feed:
    """The feed of a split. `say` gets a line on damaged images."""
    if isinstance(split, Stream):
        return StreamFeed(split, devices, say)
    return ResidentFeed(split, devices)


def training_batches(
    data: DataConfig, backend: Backend, image_mean: np.ndarray, count: int
) -> list[Batch]:
    """The first batches of the training split, at most `count`, not augmented, on the first device.

    All batches are full. If the split is smaller than a batch, it is one batch. Every call gives
    the same batches.
    """
    device = Devices(backend, jax.local_devices()[:1])
    images = feed(open_split(data, data.train_split), device, print)
    batch_size = min(data.batch_size, images.size)
    batches = []
    with images.evaluation(batch_size) as fed:
        for of_devices, _ in itertools.islice(fed, min(count, images.size // batch_size)):
            share = jax.tree.map(lambda x: x[0], of_devices)
            seen, labels = steps.select(images.resident, share, image_mean.shape)
            batches.append(Batch(augment.normalize(seen, jnp.asarray(image_mean)), labels))
    return batches


def scans(config: ModelConfig) -> bool:
    """Whether a config asks for a network with stacked blocks."""
    if config.scan == "auto":
        return config.family == "cifar" and config.depth > DEEPEST_UNROLLED
    return config.scan == "on"


def build_model(
    config: ModelConfig, num_classes: int, platform: str | None = None
) -> ResNet | vgg.VGG:
    """The network of a config. Raises UserError if its family has no such network.

    `platform`: that of the devices that will run it, which is not always this machine's. None: it
    will not run, only shapes and names are wanted.
    """
    dtype = jnp.dtype(config.dtype)
    if config.family == "vgg":
        for name, expected in WITHOUT_BLOCKS.items():
            if (got := getattr(config, name)) not in expected:
                raise UserError(
                    f"Expected model.{name} in {expected} for VGG, which has no blocks and no BN,"
                    f" got {got!r}; give that, or another model.family."
                )
        return vgg.build_vgg(config.depth, num_classes, dtype)
    return build_resnet(
        config.family,
        config.depth,
        config.shortcut,
        config.widths,
        config.block,
        num_classes=num_classes,
        shortcut_scale=config.shortcut_scale,
        zero_init_residual=config.zero_init_residual,
        negative_slope=config.negative_slope,
        kernel_init=config.init,
        bn_bias=config.bn_bias,
        bottleneck_stride=config.bottleneck_stride,
        norm=config.norm,
        bn_momentum=config.bn_momentum,
        bn_epsilon=config.bn_epsilon,
        norm_axis=DATA_AXIS if config.bn_scope == "global" else None,
        dtype=dtype,
        scan=scans(config),
        remat=config.remat,
        conv_general_dilated=conv_general_dilated if platform == "cpu" else None,
    )


def check_image_shape(config: ModelConfig, shape: Sequence[int]) -> None:
    """Raises UserError if the network cannot take images of shape (H, W, C)."""
    if config.family == "vgg" and min(shape[:2]) < vgg.SMALLEST_IMAGE:
        raise UserError(
            f"Expected images of at least {vgg.SMALLEST_IMAGE} pixels a side for VGG, got"
            f" {tuple(shape)}."
        )


@functools.cache
def build_schedule(config: OptimConfig) -> optax.Schedule:
    """The learning rate as a function of the step.

    Equal configs give the same function, so that their runs share compiled programs.
    """
    return optim.learning_rate(
        config.lr, config.boundaries, config.decay_factor, config.warmup_steps, config.warmup_lr
    )


@functools.cache
def build_optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser, with the learning rate of `schedule`."""
    decay = config.weight_decay, config.decay_bn_and_bias
    if config.optimizer == "adam":
        betas = config.momentum, config.adam_beta2
        optimizer = optim.adam(schedule, *betas, config.adam_epsilon, config.nesterov, *decay)
    else:
        layerwise = config.optimizer == "lars"
        optimizer = optim.sgd(schedule, config.momentum, config.nesterov, *decay, layerwise)
    if config.clip_norm:
        optimizer = optim.with_clipping(optimizer, config.clip_norm)
    if config.norms_of:
        optimizer = optim.with_factors(optimizer)
    if config.frozen:
        optimizer = optim.with_frozen(optimizer, config.frozen)
    return optimizer
