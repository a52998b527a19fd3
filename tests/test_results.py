"""The README's numbers are those of the committed records."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import published, report, results
from resnet_flax import findings
from resnet_flax.findings import Initial

DIGITS = Path("experiments/results/digits")
CIFAR10_SHORT = Path("experiments/results/cifar10_short")
README = Path("README.md").read_text()
TEXT = " ".join(README.split())


def summary(folder):
    """Of finished runs, by kind and depth."""
    runs = results.read_runs(folder)
    assert set(runs["state"]) == {"finished"}
    return results.summarize(runs).set_index(["kind", "depth"])


def test_training_error_rises_with_depth_for_plain_networks_and_not_for_residual_ones():
    plain, residual = (summary(DIGITS).loc[kind]["train_error"] for kind in ("plain", "residual"))
    assert plain.is_monotonic_increasing
    assert plain[44] > 0.2
    assert plain[56] > 0.5
    assert residual[44] < 0.01
    assert residual[56] < 0.03


def test_on_cifar10_a_short_schedule_is_too_short_for_the_deep_plain_network():
    errors = summary(CIFAR10_SHORT)["train_error"]
    assert errors["plain", 56] >= 2 * errors["plain", 20]
    assert errors["plain", 56] >= 2 * errors["residual", 56]


def test_gradients_of_the_short_schedule_are_as_the_readme_says():
    ratios = {}
    for kind, depth in itertools.product(("plain", "residual"), (20, 56)):
        layers = findings.load_layers(CIFAR10_SHORT / f"{kind}-{depth}-s0")
        ratios[kind, depth] = [ratio(at) for at in (layers[0], layers[-1])]
    (p20, p20_end), (p56, p56_end), (r20, r20_end), (r56, r56_end) = ratios.values()
    assert f"{p56:,.0f} times that at the last for 56 layers and {p20:.0f} times for 20" in TEXT
    assert f"(residual: {r56:.0f} and {r20:.0f}); after training it is {p56_end:.1f}" in TEXT
    assert f"and {p20_end:.0f} times (residual: {r56_end:.0f} and {r20_end:.0f})." in TEXT


@pytest.mark.parametrize("folder", [DIGITS, CIFAR10_SHORT])
def test_the_readmes_tables_are_the_records(folder):
    table = report.in_markdown(folder, results.read(folder))
    assert (folder / "table.md").read_text() == table
    assert README.count(f"\n\n{table}\n") == 1


def test_what_others_measured_is_in_the_readme_as_it_is_in_the_report():
    expected = []
    for depth, paper in list(published.PAPER.errors["pad"].items())[:-1]:
        others = (
            published.REPRODUCTIONS.errors[kind].get(depth, "none") for kind in ("pad", "none")
        )
        expected.append([f"{depth}", paper, *others])
    table = re.search(r"\n  \|-.*\n((?:  \|.*\n)+)", README.split("### What we have not run")[1])
    rows = [line.strip("| ").split(" | ") for line in table[1].splitlines()]
    assert [[row[0], *row[2:5]] for row in rows] == expected


def ratio(layers):
    """Of the gradient norms at what the first and the last layer read."""
    return layers.layers[0].input_gradient_norm / layers.layers[-1].input_gradient_norm


@pytest.fixture(scope="module")
def answer():
    """What the README says of gradients, in one line."""
    return TEXT.split("### Is it vanishing gradients?")[1].split("![")[0]


@pytest.fixture(scope="module")
def initial():
    networks = findings.load(DIGITS / findings.INITIAL, Initial).networks
    return {(n.kind, n.depth, n.norm): n.at for n in networks}


@pytest.fixture(scope="module")
def layers():
    """Kind -> those of each seed at 56 layers, before and after training."""
    return {
        kind: [findings.load_layers(DIGITS / f"{kind}-56-s{seed}") for seed in range(5)]
        for kind in ("plain", "residual")
    }


def test_gradients_explode_in_plain_networks_with_bn_and_vanish_without(initial, layers, answer):
    before = {kind: sorted(ratio(seed[0]) for seed in seeds) for kind, seeds in layers.items()}
    low, *_, high = before["plain"]
    assert f"{low:,.0f} to {high:,.0f} times" in answer
    low, *_, high = before["residual"]
    assert f"{low:.0f} to {high:.0f} and" in answer
    assert f"{ratio(initial['plain', 110, 'batch']) / 1e6:.1f} million times" in answer
    assert f"and {ratio(initial['residual', 110, 'batch']):.0f} times" in answer
    assert f"{ratio(initial['plain', 56, 'none']):.1e} of that" in answer
    assert f"{ratio(initial['plain', 110, 'none']):.1e} for 110" in answer
    assert f"loss of {initial['residual', 110, 'none'].loss:,.0f} before" in answer


def test_early_layers_of_deep_plain_networks_end_with_large_responses(layers, answer):
    largest = {
        kind: sorted(max(layer.response_std or 0 for layer in seed[-1].layers) for seed in seeds)
        for kind, seeds in layers.items()
    }
    assert f"of {largest['plain'][0]:.0f} to {largest['plain'][-1]:.0f} " in answer
    assert f"residual: {largest['residual'][0]:.1f} to {largest['residual'][-1]:.1f}," in answer
    shares = []
    for seed in layers["residual"]:
        of_blocks = [layer.identity_share for layer in seed[-1].layers]
        shares.append(np.mean([share for share in of_blocks if share is not None]))
    assert f"{min(shares) * 100:.0f} to {max(shares) * 100:.0f} % of" in answer


def test_at_110_layers_digits_are_not_learnt_in_20_epochs():
    runs = results.read_runs(Path("experiments/results/digits_110"))
    errors = runs.groupby("kind")["train_error"].agg(["mean", "std", "min"]) * 100
    plain, residual = errors.loc["plain"], errors.loc["residual"]
    assert f"plain {plain['mean']:.1f} ± {plain['std']:.1f} %" in TEXT
    assert f"residual {residual['mean']:.1f} ± {residual['std']:.1f} % training error" in TEXT
    assert f"the best of these {residual['min']:.1f} %" in TEXT


def test_without_bn_deep_networks_of_either_kind_are_not_learnt():
    runs = results.read_runs(Path("experiments/results/digits_no_bn")).set_index("run")
    errors = (runs["train_error"] * 100).map("{:.1f} %".format)
    assert f"plain 20 ends at {errors['plain-20-s0']} training error" in TEXT
    assert (
        f"plain 56 at {errors['plain-56-s0']}, residual 20 at {errors['residual-20-s0']}," in TEXT
    )
    assert runs.loc["residual-56-s0", "state"] == "diverged"
    assert f"diverges in its first {runs.loc['residual-56-s0', 'step']} steps" in TEXT
