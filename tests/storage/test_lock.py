import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from resnet_flax.errors import FaultError, TryAgainError, UserError
from resnet_flax.storage import lock, sums
from resnet_flax.storage.checkpoint_writer import CheckpointWriter
from resnet_flax.storage.lock import FolderLock
from resnet_flax.storage.records import Status
from resnet_flax.storage.run_folder import RunFolder

HOLD = """
import sys, time
from resnet_flax.storage import filesystem
from resnet_flax.errors import TryAgainError
from resnet_flax.storage.lock import FolderLock
lock = FolderLock(filesystem.path(sys.argv[1]))
try:
    lock.acquire(print)
except TryAgainError:
    print("refused", flush=True)
else:
    print("held", flush=True)
    time.sleep(3600)
"""


def holder(folder):
    """Another process that tries to hold the lock."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def held(tmp_path):
    yield from _held(tmp_path)


@pytest.fixture
def held_anywhere(anywhere):
    yield from _held(anywhere)


def _held(folder):
    process = holder(folder)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def acquire(folder, say=pytest.fail):
    taken = FolderLock(folder)
    taken.acquire(say)
    return taken


def test_a_second_process_is_told_who_holds_the_folder(anywhere, held_anywhere):
    with pytest.raises(TryAgainError) as error:
        acquire(anywhere)
    assert f"in use by process {held_anywhere.pid} on {socket.gethostname()}, started 20" in str(
        error.value
    )


def test_a_frozen_holder_on_this_host_still_holds(anywhere, held_anywhere):
    held_anywhere.send_signal(signal.SIGSTOP)
    with pytest.raises(TryAgainError, match="in use"):
        acquire(anywhere)


@pytest.mark.parametrize("waited_for", [True, False])
def test_a_dead_holder_on_this_host_is_succeeded_at_once(anywhere, held_anywhere, waited_for):
    held_anywhere.kill()
    if waited_for:  # Otherwise it is a zombie: there, and dead.
        held_anywhere.wait()
    else:
        os.waitid(os.P_PID, held_anywhere.pid, os.WEXITED | os.WNOWAIT)
    acquire(anywhere).release()
    assert not (anywhere / "lock.json").exists()
    acquire(anywhere).release()


def test_a_dead_holder_whose_number_is_this_processs_is_succeeded_at_once(tmp_path):
    # As in a container started anew.
    acquire(tmp_path)._released.set()
    edit(tmp_path, process_created=1.0)
    acquire(tmp_path).release()


@pytest.mark.parametrize("kill", [None, PermissionError])
def test_a_living_holder_that_is_hidden_is_not_taken_for_dead(tmp_path, held, monkeypatch, kill):
    # As where /proc is mounted with hidepid=2, and its user is another.
    process = psutil.Process

    def hide(pid=None):
        if pid not in (None, os.getpid()):
            raise psutil.NoSuchProcess(pid)
        return process(pid)

    def forbid(pid, signal):
        raise kill

    class Watches(Exception):
        pass

    def say(line):
        assert f"held by process {held.pid}" in line
        raise Watches

    monkeypatch.setattr(psutil, "Process", hide)
    if kill:
        monkeypatch.setattr(os, "kill", forbid)
    with pytest.raises(Watches):
        acquire(tmp_path, say)
    if not kill:
        held.kill()
        held.wait()
        acquire(tmp_path).release()


def edit(folder, **change):
    path = folder / "lock.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    "change", [{"machine": "elsewhere", "host": "elsewhere"}, {"process_created": 1.0}]
)
def test_a_holder_that_cannot_be_seen_is_succeeded_when_its_heart_has_stopped(
    tmp_path, held, monkeypatch, change
):
    edit(tmp_path, token="another's", **change)
    monkeypatch.setattr(lock, "STALE_SECONDS", 1)
    said: list[str] = []
    began = time.monotonic()
    acquire(tmp_path, said.append).release()
    assert time.monotonic() - began >= 1
    assert f"held by process {held.pid} on" in said[0]


def test_a_holder_elsewhere_whose_heart_beats_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    first = acquire(tmp_path)
    edit(tmp_path, machine="elsewhere", host="elsewhere")
    with pytest.raises(TryAgainError, match="on elsewhere"):
        acquire(tmp_path, print)
    first.check_held()
    first.release()


def test_a_lock_that_a_crash_cut_off_is_succeeded_when_nothing_beats(tmp_path, monkeypatch):
    (tmp_path / "lock.json").write_text('{"host": "el')
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    acquire(tmp_path, print).release()


def test_a_lock_that_is_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "lock.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a link to nothing. Delete it"):
        acquire(tmp_path)


def test_a_lock_that_could_not_be_written_is_not_left_behind(tmp_path, monkeypatch):
    def fail(descriptor, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match="No space"):
        acquire(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("content", ["[]", "3", '{"machine": 3, "pid": [], "token": {}}', "\0"])
def test_whatever_stands_in_a_lock_it_ends_by_the_heartbeat(tmp_path, monkeypatch, content):
    content = content.replace("3,", f'"{lock.machine()}",')
    (tmp_path / "lock.json").write_text(content)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    acquire(tmp_path, print).release()


def test_a_writer_that_lost_its_lock_finds_out_and_neither_beats_nor_takes_it_away(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    first = acquire(tmp_path)
    first.check_held()
    edit(tmp_path, token="another's", pid=7, host="elsewhere")
    with pytest.raises(FaultError, match="taken over by process 7 on elsewhere"):
        first.check_held()
    modified = (tmp_path / "lock.json").stat().st_mtime_ns
    time.sleep(0.3)
    assert (tmp_path / "lock.json").stat().st_mtime_ns == modified
    first.release()
    assert (tmp_path / "lock.json").exists()


def test_nobody_is_overtaken_inside_a_write_but_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 3600)
    first = acquire(tmp_path)
    edit(tmp_path, machine="elsewhere", host="elsewhere")
    with first.held():
        refused = f"process {os.getpid()} on elsewhere is in the middle of a write"
        with pytest.raises(TryAgainError, match=refused):
            acquire(tmp_path, print)
        first.check_held()
    second = acquire(tmp_path, print)
    with pytest.raises(FaultError, match="taken over"), first.held():
        pytest.fail("it writes")
    second.release()


def test_where_the_file_system_cannot_lock_the_look_before_a_write_remains(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    first = acquire(tmp_path)
    with first.held():
        edit(tmp_path, token="another's")
    with pytest.raises(FaultError, match="taken over"), first.held():
        pytest.fail("it writes")
    first.release()


WRITES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.utime"}


def is_locked(folder):
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_all_that_is_written_to_a_runs_folder_is_written_while_nobody_can_take_it_over(tmp_path):
    run, seen, unlocked = tmp_path / "run", set(), []
    watching = [False]

    def watch(event, args):
        if not watching[0] or event not in WRITES or not isinstance(args[0], str | os.PathLike):
            return
        name = os.path.relpath(args[0], run)
        reads = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
        # A step is nobody else's until it has its name; `dir_fd` is of such a step.
        if name.startswith("..") or name in (".", ".lock") or ".part" in name or reads:
            return
        seen.add(name)
        watching[0] = False
        if not is_locked(run):
            unlocked.append((event, name))
        watching[0] = True

    sys.addaudithook(watch)
    run.mkdir()
    watching[0] = True
    try:
        write_everything(RunFolder(run))
    finally:
        watching[0] = False
    assert not unlocked
    names = {name.split("/")[-1].split(".jsonl")[0].split(".json")[0].lstrip(".") for name in seen}
    assert names >= {"lock", "config", "status", "environment", "metrics", "checkpoints"}
    assert "3" in names and any(name.endswith(".old") for name in names), "set aside, deleted"


def write_everything(folder):
    with folder.claim({}, print):
        folder.write_status(Status("running"))
        folder.add_environment({})
        folder.append_metrics({"step": 1})
        folder.drop_metrics_after(0)
        with writer(folder) as saving:
            for step in (1, 2, 3):
                saving.save(step, {"value": np.zeros(3)}, {})
            saving.close({})
            with folder.held():
                (folder.checkpoints / "3" / sums.SUMS).unlink()
            assert saving.reader.last_good() == 2


def writer(folder):
    return CheckpointWriter(
        folder.checkpoints, keep_every=0, attempt=1, held=folder.held, say=print
    )


def test_a_folder_that_vanished_is_noticed(tmp_path):
    (tmp_path / "run").mkdir()
    first = acquire(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FaultError, match="is gone"):
        first.check_held()
    first.release()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_emptied_stays_empty(tmp_path):
    first = acquire(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(FaultError, match="lock is gone"), first.held():
        pass
    first.release()
    assert not list(tmp_path.iterdir())


def test_of_many_that_come_at_once_one_gets_the_lock_of_a_dead_holder(tmp_path):
    for _ in range(3):
        acquire(tmp_path)._released.set()
        edit(tmp_path, process_created=1.0)  # Dead, for this process.
        results: list[FolderLock | None] = []

        def come(results=results):
            try:
                results.append(acquire(tmp_path))
            except TryAgainError:
                results.append(None)

        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [result for result in results if result]
        winner.check_held()
        winner.release()


def test_of_many_processes_that_come_at_once_one_gets_the_lock(anywhere):
    processes = [holder(anywhere) for _ in range(4)]
    said = sorted(process.stdout.readline() for process in processes)
    for process in processes:
        process.kill()
        process.communicate()
    assert said == ["held\n", *["refused\n"] * 3]
