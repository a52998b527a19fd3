import numpy as np
import pytest

from configs import digits
from resnet_flax.config import RunConfig, parse
from resnet_flax.errors import UserError


def config(**changes):
    values = digits.get_config("resnet20").to_dict()
    for name, value in changes.items():
        *sections, field = name.split("__")
        inner = values
        for section in sections:
            inner = inner[section]
        if value is None:
            del inner[field]
        else:
            inner[field] = value
    return values


def test_a_whole_config_is_read_with_its_types():
    read = parse(config(optim__boundaries=(1, 2)), RunConfig)
    assert read.optim.boundaries == (1, 2)
    assert read.model_dump(mode="json")["optim"]["boundaries"] == [1, 2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__depth": "20"}, r"config.model.depth: .*integer, got '20'"),
        ({"model__depth": 20.5}, r"config.model.depth: .*integer"),
        ({"model__shortcut": "foo"}, r"config.model.shortcut: .*'projection_all', got 'foo'"),
        ({"model__colour": 1}, r"config.model.colour: Extra inputs"),
        ({"optim__lr": None}, r"config.optim.lr: Field required"),
        ({"optim__lr": -0.1}, r"config.optim.lr: .*greater than or equal to 0, got -0.1"),
        ({"optim__lr": float("nan")}, r"config.optim.lr: "),
        ({"optim__lr": float("inf")}, r"config.optim.lr: "),
        ({"optim__boundaries": (120, 120)}, r"config.optim.boundaries: expected ascending"),
        (
            {"optim__adam_beta2": 0.9},
            r'config.optim: expected adam_beta2=0.999 with optimizer="sgd"',
        ),
        ({"optim__nesterov": 1}, r"config.optim.nesterov: .*boolean"),
        ({"seed": -1}, r"config.seed: "),
        ({"seed": 2**32}, r"config.seed: "),
        ({"steps": 0}, r"config.steps: "),
        ({"log_every": 12 * 2**30}, r"config.log_every: .*less than 2147483648"),
        ({"optim__boundaries": (2**31,)}, r"config.optim.boundaries.0: .*less than 2147483648"),
        ({"log_every": 10}, r"log_every to be a multiple of steps_per_dispatch, 12, got 10"),
        ({"data__crop": "random"}, r"config.data.crop: .*'scale' or 'inception', got 'random'"),
        ({"data__crop": "scale", "data__pad": 4}, r'config.data: expected pad=0 with crop="scale"'),
        ({"data__shorter_side": (200, 480)}, r"config.data: expected image_size <= shorter_side"),
        ({"data__shorter_side": (256,)}, r"config.data.shorter_side"),
        ({"data": 3}, r"config.data: "),
        (
            {"optim__boundaries": (np.int64(120),)},
            r"config: expected plain .* got np.int64\(120\) of type int64.* int\(value\)",
        ),
        ({"data__name": {"cifar10"}}, r"config: expected plain Python values.* type set"),
        ({"data__data_dir": "/data/B\udce4r"}, r"config: expected text in UTF-8, .*/data/B"),
        ({"data__pad": 4097}, r"config.data.pad: .*less than or equal to 4096"),
        ({"data__name": "cifar10:3.*.*"}, r"config.data.name: .* such as cifar10:3.0.2, got"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(changes, message):
    with pytest.raises(UserError, match=message) as error:
        parse(config(**changes), RunConfig)
    assert "\n" not in str(error.value)
