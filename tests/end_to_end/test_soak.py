import random
from pathlib import Path

import pytest

from experiments import soak
from resnet_flax.storage.run_folder import RunFolder


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_in_the_bits_of_one_never_killed(tmp_path):
    options = ["--config.parallel=pmap"]
    outcome = soak.soak("resnet8", tmp_path, 1, options, len(soak.MOMENTS), random.Random(0))
    assert outcome.mismatches == []
    assert sum(outcome.kills.values()) >= len(soak.MOMENTS) - 1  # One may come too late.
    assert outcome.attempts >= 4
    recorded = [(r["step"], r["kind"], r.get("split")) for r in killed(tmp_path).metrics()]
    assert len(set(recorded)) == len(recorded) == 30 + 10 + 1

    # And a bit that differs would have been seen.
    metrics = killed(tmp_path).metrics_file
    metrics.write_text(metrics.read_text().replace('"loss": 0.', '"loss": 1.', 1))
    assert len(soak.mismatches(tmp_path / "whole", tmp_path / "killed")) == 1
    another = Path(__file__).parents[1] / "golden" / "run"
    assert len(soak.mismatches(tmp_path / "whole", another)) > 40


def killed(tmp_path):
    return RunFolder(tmp_path / "killed")
