from datetime import datetime

import pytest

from experiments.sweeping import estimate
from experiments.sweeping.estimate import Timed
from experiments.sweeping.monitor import SweepMonitor
from resnet_flax.storage.sweep_folder import SweepFolder


@pytest.mark.parametrize("sweep", ["digits_xeon", "digits_bfloat16"])
def test_the_time_left_of_a_recorded_make_sweep_is_right_from_the_third_run_on(sweep):
    """The first two seeds are those of `make sweep`. Programs were compiled in the first one."""
    folder = SweepFolder(f"experiments/results/{sweep}")
    points = list(folder.points.values())[:20]
    monitor = SweepMonitor(folder.path, points)
    monitor.refresh()
    ends = [datetime.fromisoformat(run.status.updated).timestamp() for run in monitor.runs]
    assert ends == sorted(ends)
    timed = [run.timed for run in monitor.runs]
    for done in range(3, 20):
        waiting = (run._replace(work_left=run.work, speed=None, seconds=None) for run in timed)
        known = [*timed[:done], *list(waiting)[done:]]
        took = ends[-1] - ends[done - 1]
        assert estimate.seconds_left(known) == pytest.approx(took, rel=0.25), done


def test_a_network_is_compiled_once():
    """Each takes 10 s of steps. Compilation takes 1 s a layer, loading what is compiled 2 s."""

    def run(network, seconds):
        ended = seconds is not None
        known = (0.0, 1.0, float(seconds)) if ended else (10.0, None, None)
        return Timed(network, network, 10.0, *known)

    ended = [run(8, 10 + 8 + 1), run(20, 10 + 20 + 1)]
    assert estimate.seconds_left([*ended, run(56, None)]) == pytest.approx(10 + 56 + 1)
    assert estimate.seconds_left([*ended, run(8, None)]) == pytest.approx(10 + 1)
    again = [*ended, run(8, 10 + 2), run(20, None)]
    assert estimate.seconds_left(again) == pytest.approx(10 + 2)


def test_nothing_is_said_before_anything_is_measured():
    waiting = Timed(8, 8, 10.0, 10.0, None, None)
    assert estimate.seconds_left([waiting, waiting]) is None


@pytest.mark.parametrize("overheads", [(9, 1), (1, 90), (5, 5)])
def test_an_overhead_is_never_below_zero(overheads):
    ended = [Timed(d, d, 10.0, 0.0, 1.0, 10.0 + o) for d, o in zip((8, 20), overheads, strict=True)]
    for depth in (2, 200):
        waiting = Timed(depth, depth, 10.0, 10.0, None, None)
        assert estimate.seconds_left([*ended, waiting]) >= 10
