"""The README's numbers are those of the committed records."""

import re
from pathlib import Path

import pytest

from experiments import results

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
