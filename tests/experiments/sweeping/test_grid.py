import json

import pytest

from configs import degradation, digits
from experiments.sweeping import grid
from resnet_flax.errors import UserError
from resnet_flax.storage.sweep_folder import SweepFolder
from tests.given import expanded

SMALL_STEPS = {"model": {"shortcut": "none"}, "optim": {"lr": 0.01}}


@pytest.fixture
def fields():
    """The digits sweep, with one depth and one seed."""
    config = degradation.get_config("digits").to_dict()
    return config | {"depths": (8,), "seeds": (0,)}


def test_a_kind_names_any_fields_and_a_string_is_a_shortcut(fields):
    kinds = {"plain": "none", "plain, small steps": SMALL_STEPS, "dotted": {"optim.lr": 0.02}}
    runs = expanded(fields | {"kinds": kinds})
    assert [run.name for run in runs] == ["plain-8-s0", "plain_small_steps-8-s0", "dotted-8-s0"]
    assert [run.kind for run in runs] == list(kinds)
    seen = [(run.config.model.shortcut, run.config.optim.lr) for run in runs]
    assert seen == [("none", 0.1), ("none", 0.01), ("pad", 0.02)]


def test_no_kinds_name_leads_out_of_the_sweeps_folder(fields):
    runs = expanded(fields | {"kinds": {"../plain": "none", "a/b": "none", ".": "none"}})
    assert [run.name for run in runs] == ["_plain-8-s0", "a_b-8-s0", "_-8-s0"]


def test_the_grid_has_every_combination_of_the_varied_fields(fields):
    vary = {
        "optim": {"lr": (0.1, 1e-5)},
        "data.flip": (True,),
        "model.widths": ((4, 8, 8), (8, 8, 8)),
    }
    runs = expanded(fields | {"kinds": {"plain": "none"}, "vary": vary})
    assert [run.name for run in runs] == [
        f"plain-8-lr{lr}-flipTrue-widths{widths}-s0"
        for lr in ("0.1", "1e-05")
        for widths in ("4_8_8", "8_8_8")
    ]
    last = runs[-1]
    assert (last.config.optim.lr, last.config.model.widths) == (1e-5, (8, 8, 8))
    assert last.point.varied == {
        "optim.lr": 1e-5,
        "data.flip": True,
        "model.widths": "(8, 8, 8)",
    }
    assert last.point.group == "plain, lr 1e-05, flip True, widths (8, 8, 8)"


def test_a_rule_holds_from_its_depth_on_and_the_deepest_one_counts(fields):
    rules = {"14": {"optim": {"warmup_steps": 3, "lr": 0.5}}, "20": {"optim.warmup_steps": 5}}
    runs = expanded(fields | {"depths": (20, 8, 14), "from_depth": rules})
    seen = {run.config.model.depth: run.config.optim for run in runs}
    assert [(seen[depth].warmup_steps, seen[depth].lr) for depth in (8, 14, 20)] == [
        (0, 0.1),
        (3, 0.5),
        (5, 0.5),
    ]


def test_the_papers_warm_up_is_a_rule_at_110():
    runs = expanded(degradation.get_config("cifar10").to_dict())
    warm = {run.config.model.depth: run.config.optim.warmup_steps for run in runs}
    assert warm == {20: 0, 32: 0, 44: 0, 56: 0, 110: 400}


def test_a_config_of_an_older_version_gives_the_same_runs(fields):
    """It has `warmup_from_depth`, and the warm-up in the runs' own field."""
    fields["run"]["optim"]["warmup_steps"] = 7
    old = expanded(fields | {"depths": (8, 14), "warmup_from_depth": 14})
    fields["run"]["optim"]["warmup_steps"] = 0
    rule = {"14": {"optim": {"warmup_steps": 7}}}
    assert old == expanded(fields | {"depths": (8, 14), "from_depth": rule})
    assert {run.config.optim.warmup_steps for run in old} == {0, 7}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kinds": {"a b": {"optim": {"rate": 1}}}}, r"kinds.a b.optim.rate: no such .* lr, "),
        ({"kinds": {"a b": {"optim": {"lr": "x"}}}}, r"kinds.a b.optim.lr: .* number, got 'x'"),
        ({"kinds": {"a b": {"optim": {}}}}, r"kinds.a b.optim: expected one of its fields: lr, "),
        ({"kinds": {"a b": {"optim": 3}}}, r"kinds.a b.optim: expected one of its fields: lr, "),
        ({"kinds": {"a": {"seed": 1}}}, "config.kinds.a sets seed. Give --config.seeds instead"),
        ({"kinds": {"a": {"model.depth": 8}}}, "Give --config.depths instead"),
        ({"kinds": {"a": 3}}, "config.kinds.a: .* object, got 3"),
        ({"kinds": {"\n": "none"}}, "expected a printable name"),
        ({"kinds": {" ": "none"}}, "expected a printable name"),
        ({"kinds": {"é": "none", "ü": "pad"}}, "Two runs would have the name _-8-s0: 'é' and 'ü'"),
        ({"kinds": {"α": "none", "β": "pad", "γ": "pad"}}, "Two runs would have .* 'α' and 'β'"),
        ({"kinds": {"a" * 100: "none"}, "vary": {"init_from": ("b" * 100,)}}, "200 characters"),
        ({"vary": {"optim.lr": 0.1}}, "config.vary: expected a tuple of .*lr, got 0.1"),
        ({"vary": {"optim.lr": ()}}, "config.vary: expected a tuple of values"),
        ({"vary": {"optim.lr": (0.1, 0.1)}}, "config.vary: expected distinct values"),
        ({"vary": {"optim.lr": (0.1, "x")}}, "config.vary.optim.lr: .* valid number, got 'x'"),
        ({"vary": {"init_from": ("a b", "a-b")}}, "Two runs would have the name .*a_b"),
        ({"vary": {"model.shortcut": ("none",)}}, "vary and config.kinds.plain both set"),
        (
            {"vary": {"optim.lr": (1,)}, "from_depth": {"8": {"optim": {"lr": 2}}}},
            "config.vary and config.from_depth.8 both set optim.lr",
        ),
        ({"depths": (21,)}, "Run plain-21-s0: Expected a depth of .*, got 21"),
        ({"from_depth": {"8": {"colour": 1}}}, "config.from_depth.8.colour: no such field"),
        ({"from_depth": {"deep": {"steps": 1}}}, "config.from_depth.deep"),
        (
            {"vary": {"log_every": (12, 24), "steps_per_dispatch": (12, 24)}},
            "Run plain-8-log_every12-steps_per_dispatch24-s0: config.vary: expected log_every",
        ),
    ],
)  # fmt: skip
def test_a_wrong_grid_is_one_line_that_names_what_is_wrong(fields, change, message):
    with pytest.raises(UserError, match=message):
        expanded(fields | change)


def test_a_field_that_no_run_gets_twice_may_be_set_in_two_places(fields):
    """A rule that begins above the grid's depths sets nothing."""
    expanded(fields | {"vary": {"optim.lr": (1,)}, "from_depth": {"14": {"optim": {"lr": 2}}}})


def test_a_run_whose_network_cannot_be_is_named(fields):
    with pytest.raises(UserError, match="Run plain-8-widths4_8-s0: Expected 3 positive"):
        expanded(fields | {"vary": {"model.widths": ((4, 8, 8), (4, 8))}})


def test_a_folder_says_what_varies_and_each_runs_values(fields, tmp_path):
    runs = expanded(
        fields | {"vary": {"optim.lr": (0.1, 0.01)}, "from_depth": {"8": {"steps": 24}}}
    )
    grid.save(runs, tmp_path)
    sweep = SweepFolder(tmp_path)
    assert sweep.varying == (("model.shortcut",), ("steps",), ("optim.lr",))
    assert sweep.points == {run.name: run.point for run in runs}
    later = expanded(fields | {"seeds": (1,), "vary": {"model.widths": ((4, 8, 8),)}})
    grid.save(later, tmp_path)
    sweep = SweepFolder(tmp_path)
    assert sweep.varying == (("model.shortcut",), ("steps",), ("optim.lr", "model.widths"))
    assert sweep.points["plain-8-widths4_8_8-s1"].varied == {
        "optim.lr": 0.1,
        "model.widths": "(4, 8, 8)",
    }
    assert sweep.points["plain-8-lr0.01-s0"].varied == {"optim.lr": 0.01, "model.widths": "()"}


def test_a_field_that_older_runs_lack_has_its_default_when_it_varies(fields, tmp_path):
    old = expanded(fields | {"kinds": {"plain": "none"}})
    grid.save(old, tmp_path)
    file = tmp_path / "sweep.json"
    content = json.loads(file.read_text())
    for entry in content["runs"].values():
        del entry["config"]["model"]["negative_slope"]
    file.write_text(json.dumps(content))
    vary = {"model.negative_slope": (0.1,)}
    grid.save(expanded(fields | {"kinds": {"plain": "none"}, "vary": vary}), tmp_path)
    groups = [point.group for point in SweepFolder(tmp_path).points.values()]
    assert groups == ["plain, negative_slope 0.0", "plain, negative_slope 0.1"]


def test_a_runs_config_is_one_run_and_varies_nothing():
    config = digits.get_config("plain8").to_dict()
    (run,) = grid.runs_of(config)
    assert (run.name, run.kind, run.config.model.depth) == ("plain-8", "plain", 8)
    with pytest.raises(UserError, match="Expected --vary with a sweep's --config"):
        grid.runs_of(config | {"vary": {"optim": {"lr": (0.1,)}}})
