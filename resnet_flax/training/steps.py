"""The training state and the pure steps: state in, state out.

B: images on this device; k: steps of one dispatch; N: images of the data set; H, W, C: height,
width, channels; K: classes. Every step needs an axis named DATA_AXIS. `parallel.py` maps it over
devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from resnet_flax.data import augment
from resnet_flax.runtime import bits
from resnet_flax.runtime.parallel import DATA_AXIS, means_and_sums
from resnet_flax.training import metrics


class TrainState(struct.PyTreeNode):
    """The state of training, the same on every device. Training also depends on the data set."""

    step: jax.Array  # [] int32, the number of steps taken.
    seed: jax.Array  # [] uint32; random numbers depend only on `seed` and `step`.
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    totals: metrics.Totals  # Since the last multiple of `log_every`.
    image_mean: jax.Array  # [H, W, C] or [1, 1, C] float32, of the training split.

    @property
    def variables(self) -> dict[str, Any]:
        """The variables, as `model.apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Batch(NamedTuple):
    """This device's share of a global batch."""

    image: jax.Array  # [B, H, W, C] float32, normalised.
    label: jax.Array  # [B] int32.


class Images(NamedTuple):
    """All images of a split, resident on each device, or the streamed images of some steps."""

    # [N, H * W * C] or [..., B, H, W, C] uint8. A TPU would pad the channels of resident images.
    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray  # [N] or [..., B] int32.


# The input of a step: indices [..., B] int32 into resident images, or streamed images.
Fed = jax.Array | Images


@bits.pinned()
def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_mean: jax.Array,
    image_shape: tuple[int, int, int] | None = None,
) -> TrainState:
    """The state before the first step. The parameters depend only on the seed and their names.

    `image_shape`: (H, W, C) of the training images. None: the shape of the mean.
    """
    image = jnp.zeros((1, *(image_shape or image_mean.shape)), jnp.float32)
    variables = model.init(bits.key(seed), image)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        totals=metrics.zeros(),
        image_mean=jnp.asarray(image_mean),
    )


def train_step(
    state: TrainState, batch: Batch, model: nn.Module, optimizer: optax.GradientTransformation
) -> TrainState:
    """One SGD step. Gradients and running BN averages are means over the global batch.

    The loss and the errors of the batch, in train mode and before the update, are added to
    `state.totals`.
    """

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = model.apply(variables, batch.image, train=True, mutable=["batch_stats"])
        loss = metrics.cross_entropy(logits, batch.label).mean()
        return loss, (logits, updates.get("batch_stats", {}))

    grads, (logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    totals = metrics.totals(logits, batch.label, jnp.ones_like(batch.label, bool))
    (grads, batch_stats), totals = means_and_sums((grads, batch_stats), totals)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        totals=jax.tree.map(jnp.add, state.totals, totals),
    )


@bits.pinned()
def train_steps(
    state: TrainState,
    resident: Images | None,
    fed: Fed,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    pad: int,
    flip: bool,
    color: bool,
    log_every: int,
) -> TrainState:
    """Takes k steps. `fed` is the share of this device, [k, B, ...]."""

    def body(state: TrainState, fed: Any) -> tuple[TrainState, None]:
        images, labels = select(resident, fed, state.image_mean.shape)
        image = augment.normalize(images, state.image_mean)
        places = jax.lax.axis_index(DATA_AXIS) * len(labels) + jnp.arange(len(labels))
        keys = augment.image_keys(state.seed, state.step, places)
        image = augment.augment(keys, image, pad=pad, flip=flip, color=color)
        starts = state.step % log_every == 0
        totals = jax.tree.map(lambda t: jnp.where(starts, 0, t), state.totals)
        batch = Batch(image, labels)
        return train_step(state.replace(totals=totals), batch, model, optimizer), None

    return jax.lax.scan(body, state, fed)[0]


def select(
    resident: Images | None, fed: Fed, image_shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The images [B, H, W, C] uint8 and labels [B] int32 of one step's share of `fed`.

    `image_shape`: (H, W, C) of resident images.
    """
    if resident is None:
        images, labels = fed
    else:
        images, labels = resident.images[fed], resident.labels[fed]
        images = images.reshape(len(labels), *image_shape)
    return jnp.asarray(images), jnp.asarray(labels)


@bits.pinned()
def eval_step(
    variables: Any,
    image_mean: jax.Array,
    resident: Images | None,
    fed: Fed,
    mask: jax.Array,
    *,
    model: nn.Module,
) -> metrics.Totals:
    """Totals over the images of `fed` [B, ...] in `mask` [B] bool. BN uses running averages."""
    images, labels = select(resident, fed, image_mean.shape)
    logits = eval_logits(model, variables, augment.normalize(images, image_mean))
    return jax.lax.psum(metrics.totals(logits, labels, mask), DATA_AXIS)


@bits.pinned()
def eval_logits(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    """Logits with BN's running averages: [B, H, W, C] float32, normalised -> [B, K] float32.

    Needs no device axis.
    """
    logits = model.apply(variables, images, train=False)
    assert isinstance(logits, jax.Array)  # Not a tuple, because no collection is mutable.
    return logits
