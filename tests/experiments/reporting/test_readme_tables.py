import pandas as pd

from experiments.reporting import readme_tables


def table(mean, deviation, n):
    row = {"train_error": mean, "train_error_std": deviation, "n": n}
    return pd.DataFrame([row], index=pd.MultiIndex.from_tuples([("plain", 8)]))


def test_a_difference_is_in_standard_errors_of_each_sides_own_runs():
    def found(one, other):
        return readme_tables._difference(one, other, "plain", 8, "train_error")

    assert found(table(0.5, 0.3, 9), table(0.1, 0.4, 25)) == f"{0.4 / (0.01 + 0.0064) ** 0.5:.1f}"
    assert found(table(0.5, float("nan"), 1), table(0.1, 0.4, 25)) == readme_tables.NONE
    assert found(table(0.5, 0.0, 9), table(0.1, 0.0, 9)) == readme_tables.NONE
