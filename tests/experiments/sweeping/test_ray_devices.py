import pytest

from configs import degradation
from experiments.sweeping import ray_devices
from resnet_flax.storage.records import Status
from resnet_flax.storage.run_folder import RunFolder
from tests.given import expanded


@pytest.mark.parametrize("ended", ["finished", "diverged"])
def test_the_longest_runs_begin_first_and_those_that_have_ended_not_again(tmp_path, ended):
    config = degradation.get_config("digits")
    config.depths, config.seeds = (8, 20, 14), (0,)
    runs = expanded(config.to_dict())
    folder = RunFolder(tmp_path / "residual-20-s0")
    with folder.claim({}, print):
        folder.write_status(Status(ended))
    heard = []
    queue = ray_devices._unended(
        runs, tmp_path, lambda run, *state: heard.append((run.name, state))
    )
    assert heard == [("residual-20-s0", (ended, ""))]
    names = [run.name for run in queue]
    assert names[0] == "plain-20-s0"
    assert [name.split("-")[1] for name in names] == ["20", "14", "14", "8", "8"]


def test_a_finished_run_whose_records_have_changed_is_no_success(tmp_path):
    config = degradation.get_config("digits")
    config.depths, config.seeds, config.kinds = (8,), (0,), {"plain": "none"}
    folder = RunFolder(tmp_path / "plain-8-s0")
    with folder.claim({}, print):
        folder.write_status(Status("finished"))
    folder.metrics_file.write_text('{"step": 1, "error": 0.5}\n')
    heard = []
    assert not ray_devices._unended(
        expanded(config.to_dict()), tmp_path, lambda run, *state: heard.append(state)
    )
    ((state, line),) = heard
    assert state == "failed" and "has changed since this run ended" in line


def test_a_finished_run_whose_records_cannot_be_read_does_not_end_the_sweep(tmp_path):
    config = degradation.get_config("digits")
    config.depths, config.seeds, config.kinds = (8,), (0,), {"plain": "none"}
    folder = RunFolder(tmp_path / "plain-8-s0")
    with folder.claim({}, print):
        folder.write_status(Status("finished"))
    folder.metrics_file.mkdir()
    runs = expanded(config.to_dict())
    # Its own task reports the error.
    assert ray_devices._unended(runs, tmp_path, lambda *_: pytest.fail("It is no end.")) == runs
