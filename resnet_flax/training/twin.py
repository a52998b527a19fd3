"""Gives a network the gradient norms of its twin, which has other shortcuts, but equal parameters.

So one can ask whether it is the size of the gradients that makes plain networks fail: a plain
network then begins with the gradient norms of the residual one, or the other way round.
"""

from typing import Any

import jax
import numpy as np

from resnet_flax.config import ModelConfig, RunConfig
from resnet_flax.errors import UserError
from resnet_flax.training import architecture, build, part_by_part

BATCHES = 8
"""Norms are means over so many training batches."""


def norm_factors(
    config: RunConfig, num_classes: int, image_mean: np.ndarray, variables: dict[str, Any]
) -> dict[str, Any]:
    """The factor of each parameter's gradient: its norm in the twin over its norm in the network.

    Norms are of the mean loss of a whole batch on one device, at these variables.

    - `variables`: `params` and `batch_stats`, not stacked.

    Returns a tree as the parameters, with floats. Raises UserError if a gradient is 0.
    """
    twin = architecture.twin_of(config)
    assert twin is not None
    batches = build.training_batches(config.data, config.parallel, image_mean, BATCHES)

    def norms(model: ModelConfig) -> Any:
        parts = part_by_part.parts_of(
            architecture.build_model(model, num_classes, jax.default_backend())
        )
        by_batch = [
            jax.tree.map(part_by_part.norm, part_by_part.gradients(parts, variables, batch)[0])
            for batch in batches
        ]
        return jax.tree.map(lambda *values: float(np.mean(values)), *jax.device_get(by_batch))

    def factor(path: Any, own: float, theirs: float) -> float:
        if not 0 < own < np.inf or not 0 < theirs < np.inf:
            raise UserError(
                "Expected gradients that are finite and not 0 before training, got"
                f" {own:g} here and {theirs:g} in the twin for {jax.tree_util.keystr(path)};"
                ' give optim.norms_of="".'
            )
        return theirs / own

    return dict(jax.tree_util.tree_map_with_path(factor, norms(config.model), norms(twin)))
