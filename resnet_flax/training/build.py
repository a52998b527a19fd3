"""Turns a config into the parts of a run, or raises a one-line error that says what is wrong.

The functions that this file calls take typed arguments, not the config.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from resnet_flax.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from resnet_flax.data import augment, sources
from resnet_flax.data.sources import Split
from resnet_flax.data.stream import Crops, Stream, open_stream
from resnet_flax.errors import UserError
from resnet_flax.models import vgg
from resnet_flax.models.cpu_convolution import conv_general_dilated
from resnet_flax.models.resnet import build_resnet
from resnet_flax.runtime.parallel import DATA_AXIS, Backend, Devices
from resnet_flax.training import optim, steps
from resnet_flax.training.feed import Feed, ResidentFeed, StreamFeed
from resnet_flax.training.steps import Batch

# With `model.scan="auto"`, networks deeper than this are scanned. See
# experiments/results/benchmarks.
DEEPEST_UNROLLED = 110


class Experiment(NamedTuple):
    """The parts of a run, built and checked. Nothing is compiled or written yet."""

    config: RunConfig
    model: nn.Module
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    devices: Devices
    train: Split | Stream
    test: Split | Stream


def build(config: RunConfig, devices: Devices | None = None) -> Experiment:
    """Checks that the fields of a config fit together, and reads its data. Raises UserError.

    `devices`: the devices that the run uses. Default: all.
    """
    data = config.data
    # Checks the network before the data set is read. Any class count will do.
    build_model(config.model, num_classes=1)
    devices = devices or Devices(config.parallel)
    devices.check_divisible("data.batch_size", data.batch_size)
    train, test = (open_split(data, split) for split in (data.train_split, data.test_split))
    if data.batch_size > train.size:
        raise UserError(
            f"Expected data.batch_size of at most {train.size}, the images of"
            f" data.train_split={data.train_split!r}, got {data.batch_size}. Give a smaller batch"
            " or a larger split."
        )
    check_image_shape(config.model, train.image_shape)
    if data.color and train.image_shape[-1] != 3:
        raise UserError(
            "Expected data.color=False for images without three colours, got data.color=True and"
            f" images of shape {train.image_shape}."
        )
    schedule = build_schedule(config.optim)
    return Experiment(
        config=config,
        model=build_model(config.model, train.num_classes),
        schedule=schedule,
        optimizer=build_optimizer(config.optim, schedule),
        devices=devices,
        train=train,
        test=test,
    )


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
    device = Devices(backend, jax.devices()[:1])
    images = feed(open_split(data, data.train_split), device, print)
    batch_size = min(data.batch_size, images.size)
    batches = []
    with images.evaluation(batch_size) as fed:
        for of_devices, _ in itertools.islice(fed, min(count, images.size // batch_size)):
            share = jax.tree.map(lambda x: x[0], of_devices)
            seen, labels = steps.select(images.resident, share)
            batches.append(Batch(augment.normalize(seen, jnp.asarray(image_mean)), labels))
    return batches


def scans(config: ModelConfig) -> bool:
    """Whether a config asks for a network with stacked blocks."""
    if config.scan == "auto":
        return config.family != "vgg" and config.depth > DEEPEST_UNROLLED
    return config.scan == "on"


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network of a config. Raises UserError if its family has no such network."""
    dtype = jnp.dtype(config.dtype)
    if config.family == "vgg":
        if config.shortcut != "none" or config.widths:
            raise UserError(
                'Expected model.shortcut="none" and model.widths=() for VGG, got'
                f" model.shortcut={config.shortcut!r} and model.widths={config.widths}."
            )
        if config.block != "postactivation":
            raise UserError(
                'Expected model.block="postactivation", the default, for VGG, which has no blocks,'
                f" got model.block={config.block!r}; leave it out, or give another model.family."
            )
        if config.scan == "on" or config.remat:
            raise UserError(
                'Expected model.scan="auto" or "off" and model.remat=False for VGG, which has no'
                f" blocks, got model.scan={config.scan!r} and model.remat={config.remat}."
            )
        return vgg.build_vgg(config.depth, num_classes, dtype)
    return build_resnet(
        config.family,
        config.depth,
        config.shortcut,
        config.widths,
        config.block,
        num_classes=num_classes,
        bottleneck_stride=config.bottleneck_stride,
        norm=config.norm,
        bn_momentum=config.bn_momentum,
        bn_epsilon=config.bn_epsilon,
        norm_axis=DATA_AXIS if config.bn_scope == "global" else None,
        dtype=dtype,
        scan=scans(config),
        remat=config.remat,
        conv_general_dilated=conv_general_dilated if jax.default_backend() == "cpu" else None,
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
    """SGD with the learning rate of `schedule`."""
    return optim.sgd(
        schedule, config.momentum, config.nesterov, config.weight_decay, config.decay_bn_and_bias
    )
