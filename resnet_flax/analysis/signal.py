"""What a network makes of its images and of the loss before it learns: two ways to lose a signal.

Forward, the features of a stage may no longer say which class an image has. Backward, the gradients
of two batches may have nothing in common. Balduzzi et al. (2017), arXiv 1702.08591, found the
latter in plain networks. All functions are pure. N: images; C: channels; B: batches; K: classes.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from sklearn.neighbors import NearestNeighbors

from resnet_flax.analysis import mean_field
from resnet_flax.models.resnet import part_of
from resnet_flax.storage.findings import Signal, StageSignal
from resnet_flax.training import part_by_part
from resnet_flax.training.steps import Batch

PENALTY = 1e-3
"""Of the ridge regression, as a share of the mean variance of a feature, times N."""


def measure(model: nn.Module, variables: dict[str, Any], batches: Sequence[Batch]) -> Signal:
    """The signal of an untrained network, by stages, beside the theory's gradient ratio.

    `variables` are as in `part_by_part.py`. Raises UserError for VGG, which has no blocks.
    """
    parts = part_by_part.parts_of(model)
    kernels: dict[str, list[np.ndarray]] = {}
    features: dict[str, list[np.ndarray]] = {}
    ratios = []
    for batch in batches:
        of_params, of_inputs = part_by_part.gradients(parts, variables, batch)
        ratios.append(gradient_ratio(of_inputs))
        for stage, kernel in _kernels(jax.device_get(of_params)).items():
            kernels.setdefault(stage, []).append(kernel)
        for stage, pooled in _features(parts, variables, batch).items():
            features.setdefault(stage, []).append(pooled)
    labels = np.concatenate([np.asarray(batch.label) for batch in batches])
    stages = []
    for stage, gradients in kernels.items():
        seen = np.concatenate(features[stage])
        stages.append(
            StageSignal(
                name=stage,
                gradient_cosine=_finite(mean_cosine(gradients)),
                neighbour_error=neighbour_error(seen, labels),
                ridge_error=ridge_error(seen, labels),
            )
        )
    return Signal(
        batches=len(batches),
        batch_size=len(batches[0].label),
        gradient_ratio=_finite(float(np.mean(ratios))),
        predicted_ratio=mean_field.predicted_ratio(model),
        stages=tuple(stages),
    )


def gradient_ratio(of_inputs: Mapping[str, jax.Array]) -> float:
    """|dL/dx| at the input of the first block over that at the output of the last, L2 norms.

    - `of_inputs`: the gradient at the input of each part, in order, of one batch.
    """
    names = list(of_inputs)
    blocks = [i for i, name in enumerate(names) if name.startswith("stage")]
    first, after = of_inputs[names[blocks[0]]], of_inputs[names[blocks[-1] + 1]]
    return float(part_by_part.norm(first) / part_by_part.norm(after))


def mean_cosine(gradients: Sequence[np.ndarray]) -> float:
    """The mean cosine of all pairs of B vectors. 0: nothing in common; 1: one direction.

    NaN if B is 1, or if a vector is 0, as the gradients behind a BN scale of 0 are.
    """
    vectors = np.asarray(gradients, np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if len(vectors) == 1 or not norms.all():
        return float("nan")
    return float(np.mean([a @ b for a, b in itertools.combinations(vectors / norms, 2)]))


def neighbour_error(features: np.ndarray, labels: np.ndarray) -> float | None:
    """How many percent of images have another label than the nearest other image.

    None for a single image, and for features that are not finite.

    - `features`: [N, C]; distances are Euclidean.
    - `labels`: [N].
    """
    if len(features) == 1 or not np.isfinite(features).all():
        return None
    nearest = NearestNeighbors(n_neighbors=1).fit(features).kneighbors(return_distance=False)
    return float(100 * np.mean(labels[nearest[:, 0]] != labels))


def ridge_error(features: np.ndarray, labels: np.ndarray) -> float | None:
    """The error, in percent, of a ridge regression that never saw the image that it is asked for.

    None for a single image, and for features that are not finite.

    The regression predicts [N, K] indicators of classes from [N, C] features and a constant. Its
    leave-one-out predictions have a closed form.
    """
    if len(features) == 1 or not np.isfinite(features).all():
        return None
    classes = np.unique(labels)
    targets = (labels[:, None] == classes).astype(np.float64)
    x = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    penalty = PENALTY * np.square(x).sum() / x.shape[1] or 1.0  # 1: all features are constant.
    solved = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T)
    # The hat matrix is 1 / N + x @ solved, [N, N]. Only its diagonal is made.
    own = (1 / len(x) + np.einsum("nc,cn->n", x, solved))[:, None]
    fitted = targets.mean(axis=0) + x @ (solved @ targets)
    predicted = classes[((fitted - own * targets) / (1 - own)).argmax(axis=1)]
    return float(100 * np.mean(predicted != labels))


def _kernels(of_params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The gradients of all kernels of a stage as one vector."""
    leaves: dict[str, list[np.ndarray]] = {}
    for name, tree in of_params.items():
        for path, leaf in jax.tree.leaves_with_path(tree):
            if path[-1].key == "kernel":
                leaves.setdefault(part_of(name), []).append(leaf.ravel())
    return {stage: np.concatenate(each) for stage, each in leaves.items() if stage != "head"}


def _features(
    parts: Sequence[nn.Module], variables: dict[str, Any], batch: Batch
) -> dict[str, np.ndarray]:
    """The output of each stage, as its mean over places: [B, C]."""
    found = part_by_part.outputs(parts, variables, batch.image)
    of_stages = {part_of(str(part.name)): y for part, y in zip(parts, found, strict=True)}
    return {
        stage: np.asarray(y.mean((1, 2), dtype=jnp.float32))
        for stage, y in of_stages.items()
        if stage != "head"
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
