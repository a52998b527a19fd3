"""`report` and `watch` also take the folder of one run."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import report, watch
from resnet_flax.errors import UserError
from resnet_flax.storage import recipe

RUN = Path("experiments/results/digits/residual-56-s0")


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(RUN, tmp_path / "my run")


def test_a_run_is_reported_as_a_sweep_of_one(run, capsys):
    report.main(SimpleNamespace(workdir=str(run)))
    written = {path.name for path in run.iterdir()}
    assert {"report.html", "curves.png", "gradients.svg", "line.png", "table.csv"} <= written
    assert "degradation.png" not in written, "one network does not degrade"
    assert "0.26" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "Run <b>my run</b>" in page and "Does depth hurt" not in page


def test_a_run_is_watched(run, capsys):
    watch.main(SimpleNamespace(workdir=str(run)))
    assert capsys.readouterr().out == "my run  step 240/240  finished\n"


@pytest.mark.parametrize("command", [report, watch])
def test_another_folder_is_refused(command, tmp_path):
    with pytest.raises(UserError, match=r"Expected a sweep's or a run's folder, got .*--workdir"):
        command.main(SimpleNamespace(workdir=str(tmp_path)))


@pytest.mark.parametrize(
    "model, kind",
    [
        ({"shortcut": "none"}, "plain"),
        ({"shortcut": "pad"}, "residual"),
        ({"shortcut": "pad", "block": "postactivation"}, "residual"),
        ({"shortcut": "projection", "block": "preactivation"}, "residual, preactivation"),
    ],
)
def test_a_run_outside_of_a_sweep_has_a_kind(model, kind):
    assert recipe.kind_of(recipe.flat({"model": model})) == kind
