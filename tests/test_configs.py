import importlib
from pathlib import Path
from typing import Any

import pytest

from configs import causes, degradation
from resnet_flax import config
from resnet_flax.storage.records import differing_fields
from resnet_flax.training import architecture
from tests.given import expanded

RUN_CONFIGS = {
    "digits": ["plain56", "resnet8"],
    "cifar10": ["plain20", "resnet110"],
    "imagenet": ["plain34", "resnet50", "vgg19"],
}


def parse(name, net):
    fields = importlib.import_module(f"configs.{name}").get_config(net).to_dict()
    return config.parse(fields, config.RunConfig)


@pytest.mark.parametrize("name, net", [(n, net) for n, nets in RUN_CONFIGS.items() for net in nets])
def test_a_config_is_whole_and_names_a_network(name, net):
    architecture.build_model(parse(name, net).model, num_classes=10)


def test_no_config_is_missing_from_these_tests():
    files = {path.stem for path in Path("configs").glob("*.py")} - {"__init__"}
    sweeps = {"causes", "degradation", "questions"}
    assert files == {*RUN_CONFIGS, *sweeps, "accelerators", "machines"}


@pytest.mark.parametrize("name", ["cifar10", "digits"])
@pytest.mark.parametrize("depth", [20, 56, 110])
def test_plain_and_residual_differ_in_exactly_one_field(name, depth):
    plain, residual = (parse(name, f"{kind}{depth}").model_dump() for kind in ("plain", "resnet"))
    (difference,) = differing_fields(plain, residual)
    assert difference == "model.shortcut ('none' there, 'pad' here)"


def test_the_cifar10_config_is_section_4_2s_recipe():
    config = parse("cifar10", "resnet20")
    assert (config.steps, config.data.batch_size, config.optim.boundaries) == (
        64_000,
        128,
        (32_000, 48_000),
    )
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert (config.data.pad, config.data.flip, config.optim.nesterov) == (4, True, False)
    assert config.optim.warmup_steps == 0
    assert parse("cifar10", "plain110").optim.warmup_steps == 400


def test_the_imagenet_config_is_section_3_4s_recipe():
    plain, residual = (parse("imagenet", net) for net in ("plain34", "resnet34"))
    (difference,) = differing_fields(plain.model_dump(), residual.model_dump())
    assert difference == "model.shortcut ('none' there, 'pad' here)"
    assert (plain.steps, plain.data.batch_size, plain.optim.lr) == (600_000, 256, 0.1)
    data = plain.data
    assert (data.crop, data.image_size, data.shorter_side) == ("scale", 224, (256, 480))
    assert (data.flip, data.color, data.pad) == (True, True, 0)
    assert parse("imagenet", "resnet50").model.shortcut == "projection"


@pytest.mark.parametrize(
    "name, net, scanned",
    [
        ("cifar10", "resnet110", False),
        ("cifar10", "resnet116", True),
        ("imagenet", "resnet152", False),
        ("imagenet", "vgg19", False),
    ],
)
def test_only_the_deepest_networks_of_cifar10_are_scanned(name, net, scanned):
    assert architecture.scans(parse(name, net).model) == scanned


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10_short", "imagenet"])
def test_a_sweep_has_every_kind_depth_and_seed_once(name):
    config = importlib.import_module("configs.degradation").get_config(name).to_dict()
    runs = expanded(config)
    points = {(run.kind, run.config.model.depth, run.config.seed) for run in runs}
    assert len(points) == len({run.name for run in runs}) == len(runs)
    assert len(runs) == 2 * len(config["depths"]) * len(config["seeds"])


@pytest.mark.parametrize("depth, kind", [(20, "plain"), (110, "residual")])
def test_a_sweeps_run_is_the_run_that_train_would_make(depth, kind):
    config = importlib.import_module("configs.degradation").get_config("cifar10").to_dict()
    (run,) = (run for run in expanded(config) if run.name == f"{kind}-{depth}-s0")
    assert run.config == parse("cifar10", f"{'resnet' if kind == 'residual' else kind}{depth}")


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_short_cifar10_sweep_divides_the_steps_and_drops_by_eight(kind):
    runs = {}
    for name in ("cifar10", "cifar10_short"):
        config = importlib.import_module("configs.degradation").get_config(name).to_dict()
        (runs[name],) = (r.config for r in expanded(config) if r.name == f"{kind}-56-s0")
    whole, short = runs["cifar10"], runs["cifar10_short"]
    assert (whole.steps, whole.optim.boundaries) == (
        8 * short.steps,
        tuple(8 * step for step in short.optim.boundaries),
    )
    assert {
        name.split(" ")[0] for name in differing_fields(whole.model_dump(), short.model_dump())
    } == {
        "steps",
        "eval_every",
        "checkpoint_every",
        "optim.boundaries",
    }


@pytest.mark.parametrize("data", ["digits", "dose", "cifar10", "theory"])
def test_the_conditions_of_causes_are_networks_that_exist(data):
    for run in expanded(causes.get_config(data).to_dict()):
        for model in filter(None, (run.config.model, architecture.twin_of(run.config))):
            architecture.build_model(model, num_classes=10)


def test_every_explanation_was_asked_about_every_condition():
    assert list(causes.PREDICTIONS) == list(causes.KINDS)
    words = {word for said in causes.PREDICTIONS.values() for word in said}
    assert all(len(said) == len(causes.EXPLANATIONS) for said in causes.PREDICTIONS.values())
    assert words == {"trains", "fails", ""}
    # A condition on which all three agree decides nothing, but shows that the others do.
    agreed = [kind for kind, said in causes.PREDICTIONS.items() if len(set(said)) == 1]
    assert len(agreed) < len(causes.KINDS) / 2


def test_plain_and_residual_are_those_of_the_degradation_experiment():
    ours, theirs = causes.get_config(), degradation.get_config("digits")
    assert ours.run.to_dict() == theirs.run.to_dict()
    of_both = {"plain": "none", "residual": "pad"}
    kinds: dict[str, Any] = causes.KINDS
    for kind, shortcut in of_both.items():
        assert kinds[kind] == {"model.shortcut": shortcut}
