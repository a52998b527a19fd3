import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from resnet_flax import lock, lock_places
from resnet_flax.errors import FaultError, TryAgainError, UserError
from resnet_flax.lock import FolderLock

HOLD = """
import sys, time
from resnet_flax import disk
from resnet_flax.errors import TryAgainError
from resnet_flax.lock import FolderLock
lock = FolderLock(disk.path(sys.argv[1]))
try:
    lock.acquire(print)
except TryAgainError:
    print("refused", flush=True)
else:
    print("held", flush=True)
    time.sleep(60)
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
    said = []
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
    first.check()
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
    def fail(value, file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock_places.json, "dump", fail)
    with pytest.raises(OSError, match="No space"):
        acquire(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["[]", "3", '{"machine": 3, "pid": [], "token": {}}', "\0"])
def test_whatever_stands_in_a_lock_it_ends_by_the_heartbeat(tmp_path, monkeypatch, content):
    content = content.replace("3,", f'"{lock._machine()}",')
    (tmp_path / "lock.json").write_text(content)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    acquire(tmp_path, print).release()


def test_a_writer_that_lost_its_lock_finds_out_and_neither_beats_nor_takes_it_away(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    first = acquire(tmp_path)
    first.check()
    edit(tmp_path, token="another's", pid=7, host="elsewhere")
    with pytest.raises(FaultError, match="taken over by process 7 on elsewhere"):
        first.check()
    modified = (tmp_path / "lock.json").stat().st_mtime_ns
    time.sleep(0.3)
    assert (tmp_path / "lock.json").stat().st_mtime_ns == modified
    first.release()
    assert (tmp_path / "lock.json").exists()


def test_a_folder_that_vanished_is_noticed(tmp_path):
    (tmp_path / "run").mkdir()
    first = acquire(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FaultError, match="is gone"):
        first.check()
    first.release()
    assert not (tmp_path / "run").exists()


def test_of_many_that_come_at_once_one_gets_the_lock_of_a_dead_holder(tmp_path):
    for _ in range(3):
        acquire(tmp_path)._released.set()
        edit(tmp_path, process_created=1.0)  # Dead, for this process.
        results = []

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
        winner.check()
        winner.release()


def test_of_many_processes_that_come_at_once_one_gets_the_lock(anywhere):
    processes = [holder(anywhere) for _ in range(4)]
    said = sorted(process.stdout.readline() for process in processes)
    for process in processes:
        process.kill()
        process.communicate()
    assert said == ["held\n", *["refused\n"] * 3]
