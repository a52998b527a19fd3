"""Refuses flags for a sweep's runs that its grid would override without a word."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections.config_flags import config_path

from experiments.sweeping.grid import SweepConfig
from resnet_flax.config import parse
from resnet_flax.errors import UserError


def check(config: Mapping[str, Any], flags: Iterable[str]) -> None:
    """Raises UserError for a --config.run.FIELD that the grid sets for all runs, or by depth.

    Kinds may set a field for some runs. `from_depth` may, too, if the flag for these is given.

    `config`: of a sweep, as its file and flags say. `flags`: those given, without `--config.`.
    """
    sweep = parse(dict(config), SweepConfig)
    instead = _instead(config, sweep)
    named = {flag: ".".join(map(str, config_path.split(flag))) for flag in flags}
    for flag, name in named.items():
        field = name.removeprefix("run.")
        if field == name:
            continue
        if field in instead:
            raise UserError(
                f"--config.{flag} has no effect: the sweep sets {field} itself. Give"
                f" {instead[field]}."
            )
        in_use = {_rule(sweep.from_depth, depth, field) for depth in sweep.depths}
        for key, rule in dict(config.get("from_depth", {})).items():
            if int(float(key)) in in_use and f"from_depth.{key}.{field}" not in named.values():
                part = f"['{field}']" if field in rule else f".{field}"
                raise UserError(
                    f"--config.{flag} does not reach networks of at least {key} layers:"
                    f" config.from_depth sets {field} there. Give it for these, too:"
                    f' "--config.from_depth[{key!r}]{part}=VALUE".'
                )


def _instead(config: Mapping[str, Any], sweep: SweepConfig) -> dict[str, str]:
    """Field -> what to give for it, for the fields that the grid sets for all runs."""
    first = next(iter(sweep.kinds))
    is_text = isinstance(config["kinds"][first], str)
    in_kinds = f"--config.kinds.{first}=VALUE" if is_text else "another value in config.kinds"
    instead = dict.fromkeys(set.intersection(*map(set, sweep.kinds.values())), in_kinds)
    instead |= {"seed": "--config.seeds", "model.depth": "--config.depths"}
    return instead | {field: f"--vary={field}=VALUE,VALUE" for field in sweep.vary}


def _rule(rules: Mapping[int, Mapping[str, Any]], depth: int, field: str) -> int | None:
    """The least depth of the rule that sets a field of networks of this depth."""
    return max((each for each in rules if each <= depth and field in rules[each]), default=None)
