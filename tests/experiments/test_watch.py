import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from experiments.sweeping import live_table
from experiments.sweeping.monitor import SweepMonitor
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.sweep_folder import SweepFolder

DIGITS = Path("experiments/results/digits")

# Where the tests run in the background, SIGINT is ignored, and would be by what they start.
WATCH = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.alarm(60)  # Ends it if it never shows what it is waited for.
runpy.run_module("experiments.watch", run_name="__main__")
"""


@pytest.fixture
def unfinished_sweep(tmp_path):
    """50 runs: the committed ones, but the first failed, the second interrupted, five deleted."""
    workdir = tmp_path / "sweep"
    shutil.copytree(DIGITS, workdir)
    for name, change in (
        ("plain-8-s0", {"state": "failed", "error": "the device is on fire"}),
        ("residual-8-s0", {"state": "running", "step": 120}),
    ):
        path = workdir / name / "status.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for name in list(SweepFolder(workdir))[-5:]:
        shutil.rmtree(workdir / name)
    return workdir


def drawn(workdir, width, height):
    console = Console(width=width, height=height, force_terminal=True, color_system="standard")
    monitor = SweepMonitor(workdir, SweepFolder(workdir).points.values())
    with console.capture() as capture:
        console.print(live_table.live_table(monitor, console))
    return capture.get().splitlines()


def test_of_50_runs_a_small_terminal_shows_those_that_matter(unfinished_sweep):
    lines = drawn(unfinished_sweep, 80, 24)
    assert len(lines) == 23
    plain = [Text.from_ansi(line).plain for line in lines]
    assert max(map(len, plain)) <= 80
    assert len(plain[-1].rstrip()) < 80 - len("^C")
    names = [line.split()[0] for line in plain]
    grid = list(SweepFolder(unfinished_sweep))
    # What went wrong, what finished last, what is next.
    assert names[1:-2] == [*grid[:2], *grid[45 - 15 : 45], *grid[45:48]]
    assert plain[-2] == "and 28 finished, 2 not begun"
    assert plain[-1].startswith("43 of 50 finished")
    assert "\x1b[1;31mfailed" in lines[1]
    assert "interrupted" in lines[2]


def test_what_runs_comes_first(unfinished_sweep):
    with RunFolder(unfinished_sweep / "residual-8-s0").claim({}, print):
        lines = drawn(unfinished_sweep, 80, 5)
    assert len(lines) == 4
    assert "running" in lines[1]


def test_every_run_has_its_line_where_there_is_room(unfinished_sweep):
    lines = drawn(unfinished_sweep, 100, 60)
    assert len(lines) == 1 + 50 + 1


def test_ctrl_c_leaves_the_table_on_the_terminal_and_nothing_in_the_folder(unfinished_sweep):
    before = sorted(unfinished_sweep.rglob("*"))
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", WATCH, f"--workdir={unfinished_sweep}"],
        stdout=its, stderr=its, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(its)
    shown, whole = b"", b"43 of 50 finished"
    with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as terminal:
        while part := terminal.read(4096):  # An OSError once the process has ended.
            before_part, shown = shown, shown + part
            if whole in shown and whole not in before_part:
                process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    assert b"interrupted" in shown
    assert b"Traceback" not in shown
    assert shown.rstrip().endswith(b"\x1b[?25h")  # The cursor is back.
    assert sorted(unfinished_sweep.rglob("*")) == before


def test_it_ends_once_nobody_reads_what_it_prints(unfinished_sweep):
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    command = [sys.executable, "-m", "experiments.watch", f"--workdir={unfinished_sweep}"]
    done = subprocess.run(command, stdout=reader.stdin, stderr=subprocess.PIPE, timeout=600)
    reader.stdin.close()
    assert (done.returncode, done.stderr) == (0, b"")
