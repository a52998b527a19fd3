"""Turns a config into the parts of a run, or raises a one-line error that says what is wrong.

The functions that this file calls take typed arguments, not the config.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from resnet_flax.config import DataConfig, OptimConfig, RunConfig
from resnet_flax.data import augment, sources
from resnet_flax.data.fingerprint import fingerprint
from resnet_flax.data.sources import Described, Split
from resnet_flax.data.stream import Crops, Stream, open_stream
from resnet_flax.errors import UserError
from resnet_flax.runtime.parallel import Backend, Devices, check_divisible
from resnet_flax.storage.records import differing_fields
from resnet_flax.training import architecture, optim, steps
from resnet_flax.training.feed import Feed, ResidentFeed, StreamFeed
from resnet_flax.training.steps import Batch

# Fields of `config.data` that only crops use.
OF_CROPS = ("image_size", "shorter_side", "channel_mean")


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
    network = architecture.build_model(config.model, num_classes=1)  # Any class count will do.
    if missing := sorted(set(config.optim.frozen) - set(network.part_names)):
        raise UserError(
            f"Expected optim.frozen in {network.part_names} for this network, got {missing}."
        )
    if twin := architecture.twin_of(config):
        try:
            architecture.build_model(twin, num_classes=1)
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
    check_divisible(config.data.batch_size, len(devices.devices))


def _program(config: RunConfig, images: Described, devices: Devices) -> Program:
    data = config.data
    if images.size is not None and data.batch_size > images.size:
        raise UserError(
            f"Expected data.batch_size of at most {images.size}, the images of"
            f" data.train_split={data.train_split!r}, got {data.batch_size}. Give a smaller batch"
            " or a larger split."
        )
    architecture.check_image_shape(config.model, images.image_shape)
    if data.pad >= min(images.image_shape[:2]):
        raise UserError(
            f"Expected data.pad smaller than the images, which have shape {images.image_shape}, got"
            f" {data.pad}. Otherwise a crop may hold nothing but padding."
        )
    if data.color and images.image_shape[-1] != 3:
        raise UserError(
            "Expected data.color=False for images without three colours, got data.color=True and"
            f" images of shape {images.image_shape}."
        )
    schedule = build_schedule(config.optim)
    return Program(
        config=config,
        images=images,
        model=architecture.build_model(config.model, images.num_classes, devices.platform),
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


def open_split(config: DataConfig, split: str) -> Split | Stream:
    """Opens a split: in memory if `config.crop` is `none`, otherwise as a stream."""
    if config.crop == "none":
        return sources.load_split(config.name, split, config.data_dir)
    crops = Crops(config.crop, config.image_size, config.shorter_side)
    return open_stream(config.name, split, crops, config.channel_mean, config.data_dir)


def open_seen(
    config: DataConfig,
    split: str,
    image_mean: np.ndarray,
    num_classes: int,
    known: Mapping[str, Any],
) -> Split | Stream:
    """Opens a split for a trained network, which subtracts `image_mean` and knows `num_classes`.

    `known`: the fingerprints of the run's splits, `train` and `test`, as far as it recorded them.

    Raises UserError if the images or classes are not like those that it was trained on, or if the
    set has other images now: in this split if the run has read it, else in its test split.
    """
    images = open_split(config, split)
    found = Described(images.image_shape, images.num_classes, None, isinstance(images, Split))
    if (found.num_classes, found.mean_shape) != (num_classes, image_mean.shape):
        raise UserError(
            f"Expected {config.name} with {num_classes} classes and a mean image of shape"
            f" {image_mean.shape}, as the run's network has, got {found.num_classes} and"
            f" {found.mean_shape}. Name the folder of the set it was trained on with --data_dir."
        )
    read = split if split == config.train_split else config.test_split
    of_run = known.get("train" if read == config.train_split else "test")
    now = fingerprint(images if read == split else open_split(config, read)) if of_run else {}
    if of_run and (other := "; ".join(differing_fields(of_run, now))):
        raise UserError(
            f"Split {read!r} of {config.name} has other images now than when this run began:"
            f" {other}. Put the old ones back, or name their folder with --data_dir."
        )
    return images


def notes(config: RunConfig) -> list[str]:
    """What a user may not expect of this config, one line each. It reads no images."""
    data, optimizer, said = config.data, config.optim, []
    if both := sources.shared(data.name, data.train_split, data.test_split, data.data_dir):
        said.append(f"{both} images are in both splits; the test error counts them, too.")
    if late := [step for step in optimizer.boundaries if step >= config.steps]:
        said.append(
            f"the learning rate does not change at {', '.join(map(str, late))} (optim.boundaries),"
            f" which a run of steps={config.steps} does not reach."
        )
    if optimizer.warmup_steps >= config.steps:
        said.append(
            f"the learning rate stays {optimizer.warmup_lr} (optim.warmup_lr): steps={config.steps}"
            f" are not more than optim.warmup_steps={optimizer.warmup_steps}."
        )
    if config.init_partial and not config.init_from:
        said.append("init_partial has no effect without init_from: the network begins anew.")
    return said


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
        optimizer = optim.with_clipping(optimizer, config.clip_norm, config.frozen)
    if config.norms_of:
        optimizer = optim.with_factors(optimizer)
    if config.frozen:
        optimizer = optim.with_frozen(optimizer, config.frozen)
    return optimizer
