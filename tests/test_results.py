"""The README's numbers are those of the committed records."""

import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from experiments import report
from experiments.reporting import published, run_tables
from resnet_flax.data import sources
from resnet_flax.runs import load_run
from resnet_flax.storage import findings
from resnet_flax.storage.findings import Initial
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.sweep_folder import SweepFolder
from tests.prepared import needs_cifar10

DIGITS = Path("experiments/results/digits")
CIFAR10_SHORT = Path("experiments/results/cifar10_short")
README = Path("README.md").read_text()
TEXT = " ".join(README.split())


def summary(folder):
    """Of finished runs, by kind and depth."""
    runs = run_tables.read_runs(SweepFolder(folder))
    assert set(runs["state"]) == {"finished"}
    return run_tables.summarize(runs).set_index(["kind", "depth"])


def test_training_error_rises_with_depth_for_plain_networks_and_not_for_residual_ones():
    plain, residual = (summary(DIGITS).loc[kind]["train_error"] for kind in ("plain", "residual"))
    assert plain.is_monotonic_increasing
    assert plain[44] > 0.2
    assert plain[56] > 0.5
    assert residual[44] < 0.01
    assert residual[56] < 0.03


def test_on_cifar10_a_short_schedule_is_too_short_for_deep_networks_most_of_all_for_plain_ones():
    errors = summary(CIFAR10_SHORT)["train_error"]
    assert errors["plain", 56] >= 4 * errors["plain", 20]
    assert errors["plain", 56] >= 3 * errors["residual", 56]
    assert errors["residual", 20] < errors["residual", 56] < 2 * errors["residual", 20]


def test_the_deep_networks_took_as_long_as_the_readme_says():
    for kind in ("plain", "residual"):
        folder = RunFolder(CIFAR10_SHORT / f"{kind}-56-s0")
        began = datetime.fromisoformat(folder.environments()[0]["started"])
        minutes = (datetime.fromisoformat(folder.status().updated) - began).total_seconds() / 60
        assert f"{minutes // 60:.0f} h {minutes % 60:.0f} min ({kind})" in TEXT


@needs_cifar10
@pytest.mark.parametrize("kind", [pytest.param("plain", marks=pytest.mark.slow), "residual"])
def test_the_networks_that_come_with_the_records_score_what_these_say(kind):
    run = load_run(CIFAR10_SHORT / f"{kind}-20-s0")
    assert run.step == run.config.steps
    test = sources.load_split("cifar10", "test")
    parts = [run.predict(test.images[i : i + 1000]).argmax(1) for i in range(0, test.size, 1000)]
    error = np.mean(np.concatenate(parts) != test.labels)
    # 5 images of 10,000: another processor adds in another order, and some are on the edge.
    assert error == pytest.approx(summary(CIFAR10_SHORT)["test_error"][kind, 20], abs=5e-4)


@pytest.mark.parametrize("folder", [DIGITS, CIFAR10_SHORT])
def test_the_readmes_tables_are_the_records(folder):
    table = report.in_markdown(run_tables.read(SweepFolder(folder)))
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


def ratio(layers, name="input_gradient_norm"):
    """Of the gradient norms at the first and the last layer; by default at what they read."""
    return getattr(layers.layers[0], name) / getattr(layers.layers[-1], name)


@pytest.fixture(scope="module")
def answer():
    """What the README says of gradients, in one line."""
    return TEXT.split("### Is it vanishing gradients?")[1].split("![")[0]


def initial(folder):
    """Networks before training, by kind, depth and norm."""
    networks = findings.load(folder / findings.INITIAL, Initial).networks
    return {(n.kind, n.depth, n.norm): n.at for n in networks}


@pytest.fixture(scope="module")
def layers():
    """Kind -> those of each seed at 56 layers, before and after training on digits."""
    return {
        kind: [findings.load_layers(DIGITS / f"{kind}-56-s{seed}") for seed in range(5)]
        for kind in ("plain", "residual")
    }


def test_gradients_explode_in_plain_networks_with_bn_and_shrink_without(layers, answer):
    digits, cifar10 = initial(DIGITS), initial(CIFAR10_SHORT)
    before = {kind: sorted(ratio(seed[0]) for seed in seeds) for kind, seeds in layers.items()}
    low, *_, high = before["plain"]
    assert f"{low:,.0f} to {high:,.0f} times" in answer
    low, *_, high = before["residual"]
    assert f"{low:.0f} to {high:.0f} and" in answer
    assert f"{ratio(digits['plain', 110, 'batch']) / 1e6:.1f} million times" in answer
    assert f"and {ratio(digits['residual', 110, 'batch']):.0f} times" in answer
    assert f"{ratio(digits['plain', 56, 'none']):.1e} of that" in answer
    assert f"{ratio(digits['plain', 110, 'none']):.1e} for 110" in answer
    assert f"loss of {digits['residual', 110, 'none'].loss:,.0f} before" in answer
    plain56, plain110, residual56, residual110 = (
        ratio(cifar10[kind, depth, "batch"])
        for kind in ("plain", "residual")
        for depth in (56, 110)
    )
    assert (
        f"on CIFAR-10 {plain56:,.0f} times and {plain110 / 1e6:.1f} million, against"
        f" {residual56:.0f} and {residual110:.0f}." in answer
    )
    shrunk = [ratio(cifar10["plain", depth, "none"]) for depth in (56, 110)]
    assert f"on CIFAR-10 only to {shrunk[0]:#.2g} and {shrunk[1]:#.2g}, so" in answer


def test_gradients_after_training_are_as_the_readme_says(layers, answer):
    for name, digits in (("input_gradient_norm", 1), ("weight_gradient_norm", 2)):
        (low, *_, high), (low_residual, *_, high_residual) = (
            sorted(ratio(seed[-1], name) for seed in layers[kind]) for kind in layers
        )
        assert (
            f"{low:.{digits}f} to {high:.{digits}f} (residual: {low_residual:.{digits}f} to"
            f" {high_residual:.{digits}f}) by" in answer
        )
    plain56, plain20, residual56, residual20 = (
        ratio(findings.load_layers(CIFAR10_SHORT / f"{kind}-{depth}-s0")[-1])
        for kind in ("plain", "residual")
        for depth in (56, 20)
    )
    assert (
        f"it is {plain56:.1f} for plain 56 and {plain20:.1f} for plain 20 (residual:"
        f" {residual56:.1f} and {residual20:.1f}) by" in answer
    )


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


def differences(one, other, name):
    """Of the means, in standard errors of the difference, largest first; without undefined ones."""
    variances = (one[f"{name}_std"] ** 2 + other[f"{name}_std"] ** 2) / one["n"]
    found = (one[name] - other[name]).abs() / np.sqrt(variances)
    return found[np.isfinite(found)].sort_values(ascending=False)


def test_another_processor_and_bfloat16_change_what_the_readme_says():
    epyc = summary(DIGITS)
    xeon, bfloat16 = (summary(DIGITS.with_name(f"digits_{k}")) for k in ("xeon", "bfloat16"))

    def said(table, kind, depth, name="train_error"):
        row = 100 * table.loc[kind, depth]
        return f"{row[name]:.1f} ± {row[f'{name}_std']:.1f}"

    plain44, plain56, residual56 = (
        [said(table, *network) for table in (xeon, bfloat16, epyc)]
        for network in (("plain", 44), ("plain", 56), ("residual", 56))
    )
    largest, second, *_ = differences(epyc, xeon, "train_error").items()
    assert largest[0] == ("plain", 44)
    assert (
        f"plain 44 ends at {plain44[0]} % training error (above: {plain44[2]}, {largest[1]:.1f}"
        f" standard errors of the difference; the others at most {second[1]:.1f})" in TEXT
    )
    assert f"plain 56 at {plain56[0]}, residual 56 at {residual56[0]} (" in TEXT
    assert f"it is {plain44[1]}, {plain56[1]} and {residual56[1]} (" in TEXT
    assert differences(xeon, bfloat16, "train_error").max() < 0.9
    largest, second, *rest = differences(xeon, bfloat16, "test_error").items()
    assert largest[0] == ("residual", 20) and len(rest) == 8
    kind, depth = largest[0]
    ends = [said(table, kind, depth, "test_error") for table in (bfloat16, xeon)]
    assert (
        f"nine differ by at most {second[1]:.1f} and residual 20's by {largest[1]:.1f},"
        f" {ends[0]} % against {ends[1]}, two images of 261" in TEXT
    )


def test_at_110_layers_digits_are_not_learnt_in_20_epochs():
    runs = run_tables.read_runs(SweepFolder(Path("experiments/results/digits_110")))
    errors = runs.groupby("kind")["train_error"].agg(["mean", "std", "min"]) * 100
    plain, residual = errors.loc["plain"], errors.loc["residual"]
    assert f"plain {plain['mean']:.1f} ± {plain['std']:.1f} %" in TEXT
    assert f"residual {residual['mean']:.1f} ± {residual['std']:.1f} % training error" in TEXT
    assert f"the best of these {residual['min']:.1f} %" in TEXT


def test_without_bn_deep_networks_of_either_kind_are_not_learnt():
    runs = run_tables.read_runs(SweepFolder(Path("experiments/results/digits_no_bn"))).set_index(
        "run"
    )
    errors = (runs["train_error"] * 100).map("{:.1f} %".format)
    assert f"plain 20 ends at {errors['plain-20-s0']} training error" in TEXT
    assert (
        f"plain 56 at {errors['plain-56-s0']}, residual 20 at {errors['residual-20-s0']}," in TEXT
    )
    assert runs.loc["residual-56-s0", "state"] == "diverged"
    assert f"diverges in its first {runs.loc['residual-56-s0', 'step']} steps" in TEXT
