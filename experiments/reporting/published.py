"""Published test errors in % on CIFAR-10, with the recipe of Sec. 4.2 and 64k steps."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from resnet_flax.storage.recipe import Varying


class Source(NamedTuple):
    """Errors by `model.shortcut` and depth, written as in the source."""

    title: str
    links: dict[str, str]
    errors: dict[str, dict[int, str]]

    def error(self, shortcut: str, depth: int) -> str:
        """Returns the error, or a dash if there is none."""
        return self.errors.get(shortcut, {}).get(depth, "–")


PAPER = Source(
    "He et al.",
    {"Table 6": "https://arxiv.org/abs/1512.03385"},
    {
        "pad": {
            20: "8.75",
            32: "7.51",
            44: "7.17",
            56: "6.97",
            110: "6.43, best of 5 (6.61 ± 0.16)",
            1202: "7.93",
        }
    },
)
# Errors at the last epoch, from the least to the largest.
REPRODUCTIONS = Source(
    "reproductions",
    {
        name: f"https://github.com/{name}"
        for name in (
            "a-martyn/resnet",
            "nabla0001/resnet",
            "wooyeolBaek/deep-residual-learning",
        )
    },
    {
        "none": {
            20: "9.69 to 9.78",
            32: "10.04 to 10.41",
            44: "11.56 to 11.73",
            56: "11.86 to 13.07",
        },
        "pad": {
            20: "8.04 to 9.18",
            32: "7.79 to 8.68",
            44: "7.51 to 8.13",
            56: "7.10 to 7.46",
            110: "6.95 to 7.14",
        },
    },
)
SOURCES = (PAPER, REPRODUCTIONS)
# What the networks above have in other fields. Old configs lack some of them.
_NETWORK = {
    "model.norm": "batch",
    "model.block": "postactivation",
    "model.shortcut_scale": 1.0,
    "model.zero_init_residual": False,
    "model.negative_slope": 0.0,
    "model.init": "he",
    "model.bn_bias": 0.0,
}


def comparable(configs: Iterable[dict[str, Any]], varying: Varying) -> tuple[Source, ...]:
    """All sources if each of these flat configs has the data set and networks above, else none.

    `varying`: the fields in which the configs may differ. Published networks differ in depth and
    shortcut alone.
    """
    same = [
        (config.get("data.name"), config.get("model.family")) == ("cifar10", "cifar")
        and config.get("data.test_split", "test") == "test"
        and config.get("model.widths", []) in ([], [16, 32, 64])
        and all(config.get(name, value) == value for name, value in _NETWORK.items())
        for config in configs
    ]
    alike = not varying.in_grid and set(varying.by_kind) <= {"model.shortcut"}
    return SOURCES if alike and same and all(same) else ()
