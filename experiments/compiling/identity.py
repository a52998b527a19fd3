"""What tells a compiled program from another: a config without rates, seeds and step counts."""

from typing import Any

import pydantic

from resnet_flax.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from resnet_flax.training import architecture

Program = dict[str, Any]
_RATES = {"lr", "boundaries", "decay_factor", "warmup_steps", "warmup_lr", "weight_decay"}
_OF_NO_STEP = {"data_dir", "test_split", "eval_batch_size"}
_SECTIONS: dict[str, type[pydantic.BaseModel]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optim": OptimConfig,
}


def of(config: RunConfig) -> Program:
    """The identity of a config's training steps, in JSON types."""
    optim = config.optim.model_dump(mode="json", exclude=_RATES)
    return {
        "model": config.model.model_dump(mode="json") | {"scan": architecture.scans(config.model)},
        "data": config.data.model_dump(mode="json", exclude=_OF_NO_STEP),
        "optim": optim | {"momentum": config.optim.momentum > 0},
        "steps_per_dispatch": config.steps_per_dispatch,
        "parallel": config.parallel,
    }


def completed(program: Program) -> Program:
    """An identity that was written before some field existed. Its default is how it was then."""
    return program | {
        name: _defaults(section) | program[name] for name, section in _SECTIONS.items()
    }


def _defaults(section: type[pydantic.BaseModel]) -> dict[str, Any]:
    fields = section.model_fields.items()
    skipped = _RATES | _OF_NO_STEP
    found = {n: f.default for n, f in fields if not f.is_required() and n not in skipped}
    return {n: list(value) if isinstance(value, tuple) else value for n, value in found.items()}
