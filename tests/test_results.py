"""The README's numbers are those of the committed records."""

import re
from pathlib import Path

import numpy as np
import pytest

from experiments import results
from resnet_flax import findings
from resnet_flax.findings import Initial

DIGITS = Path("experiments/results/digits")


@pytest.fixture(scope="module")
def summary():
    runs = results.read_runs(DIGITS)
    assert set(runs["state"]) == {"finished"}
    return results.summarize(runs).set_index(["kind", "depth"])


def test_training_error_rises_with_depth_for_plain_networks_and_not_for_residual_ones(summary):
    plain, residual = (summary.loc[kind]["train_error"] for kind in ("plain", "residual"))
    assert plain.is_monotonic_increasing
    assert plain[44] > 0.2
    assert plain[56] > 0.5
    assert residual[44] < 0.01
    assert residual[56] < 0.03


def test_the_readmes_table_is_the_records(summary):
    rows = re.findall(
        r"^\| (plain|residual) \| (\d+) \| (.+) \|$", Path("README.md").read_text(), re.M
    )
    assert len(rows) == len(summary)
    for kind, depth, cells in rows:
        row = summary.loc[(kind, int(depth))]
        expected = [f"{row['parameters']:,.0f}"]
        for name in results.ERRORS:
            expected.append(f"{row[name] * 100:.2f} ± {row[f'{name}_std'] * 100:.2f}")
        assert cells.split(" | ") == [*expected, f"{row['n']:.0f}"]


def ratio(layers):
    """Of the gradient norms at what the first and the last layer read."""
    return layers.layers[0].input_gradient_norm / layers.layers[-1].input_gradient_norm


@pytest.fixture(scope="module")
def answer():
    """What the README says of gradients, in one line."""
    text = Path("README.md").read_text()
    return " ".join(text.split("**Is it vanishing gradients?**")[1].split("![")[0].split())


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
    text = " ".join(Path("README.md").read_text().split())
    plain, residual = errors.loc["plain"], errors.loc["residual"]
    assert f"plain {plain['mean']:.1f} ± {plain['std']:.1f} %" in text
    assert f"residual {residual['mean']:.1f} ± {residual['std']:.1f} % training error" in text
    assert f"the best of these {residual['min']:.1f} %" in text


def test_without_bn_deep_networks_of_either_kind_are_not_learnt():
    runs = results.read_runs(Path("experiments/results/digits_no_bn")).set_index("run")
    text = " ".join(Path("README.md").read_text().split())
    errors = (runs["train_error"] * 100).map("{:.1f} %".format)
    assert f"plain 20 ends at {errors['plain-20-s0']} training error" in text
    assert (
        f"plain 56 at {errors['plain-56-s0']}, residual 20 at {errors['residual-20-s0']}," in text
    )
    assert runs.loc["residual-56-s0", "state"] == "diverged"
    assert f"diverges in its first {runs.loc['residual-56-s0', 'step']} steps" in text


def test_the_short_cifar10_runs_ended_as_the_readme_says():
    runs = results.read_runs(Path("experiments/results/cifar10_short")).set_index("run")
    text = " ".join(Path("README.md").read_text().split())
    for run, named in (
        ("plain-20-s0", "plain 20 has {:.2f} % training and {:.2f} % test error"),
        ("residual-20-s0", "residual 20 {:.2f} % and {:.2f} %,"),
    ):
        assert runs.loc[run, "state"] == "finished" and runs.loc[run, "step"] == 8000
        errors = runs.loc[run, ["train_error", "test_error"]] * 100
        assert named.format(*errors) in text
