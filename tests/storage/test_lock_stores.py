"""The lock in a bucket; what it has in common with one on a disk is in test_lock.py."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from resnet_flax.errors import FaultError, TryAgainError
from resnet_flax.storage import lock
from resnet_flax.storage.lock import FolderLock, Heartbeat
from resnet_flax.storage.lock_stores import Numbered
from resnet_flax.storage.run_folder import RunFolder

# A run that writes all the time, on what seems to be another machine.
WRITE = """
import itertools, sys, time
from resnet_flax.storage import lock
from resnet_flax.errors import FaultError
from resnet_flax.storage.records import Status
from resnet_flax.storage.run_folder import RunFolder
lock.machine, lock.BEAT_SECONDS = lambda: "elsewhere", 0.2
folder = RunFolder(sys.argv[1])
try:
    with folder.claim({"seed": 0}, print):
        for step in itertools.count(1):
            folder.append_metrics({"step": step})
            folder.write_status(Status("running", step))
            if step == 3:
                print("writes", flush=True)
except FaultError as error:
    print(error)
"""


@pytest.fixture
def elsewhere(bucket):
    """A process that seems to be on another machine and writes to `bucket`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(bucket)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writes\n"
    yield process
    process.kill()
    process.communicate()


def content(bucket):
    return {name: (bucket / name).read_bytes() for name in bucket.objects()}


def numbers(bucket):
    return sorted(path.name for path in (bucket / "lock").iterdir())


def test_a_frozen_holder_elsewhere_loses_its_lock_and_writes_nothing_when_it_wakes(
    bucket, elsewhere, monkeypatch
):
    elsewhere.send_signal(signal.SIGSTOP)
    time.sleep(0.5)  # What was on its way has arrived.
    monkeypatch.setattr(lock, "STALE_SECONDS", 1.5)
    folder = RunFolder(bucket)
    said: list[str] = []
    began = time.monotonic()
    with folder.claim({"seed": 0}, said.append):
        assert time.monotonic() - began >= 1.5
        assert f"held by process {elsewhere.pid} on" in said[0]
        before = content(bucket)
        elsewhere.send_signal(signal.SIGCONT)
        assert "was taken over by process" in elsewhere.stdout.read()
        after = content(bucket)
        # At most what lay between the last look at the lock and the put after it.
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        assert len(changed - {f"lock/{name}" for name in numbers(bucket)}) <= 1
        # Whose lines these are, puts them again.
        folder.drop_metrics_after(2)
        (bucket / "metrics.jsonl").write_bytes(before["metrics.jsonl"])
        folder.append_metrics({"step": 3})
        assert [record["step"] for record in folder.metrics()] == [1, 2, 3]


def test_a_holder_elsewhere_whose_heart_beats_is_left_alone(bucket, elsewhere, monkeypatch):
    with pytest.raises(TryAgainError, match="in use by process"):
        FolderLock(bucket).acquire(print)
    heart = Heartbeat(bucket)
    clock = [1e6]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert heart.is_alive()
    clock[0] += 1e6
    for _ in range(200):  # A beat may take a while on a busy machine.
        if alive := heart.is_alive():
            break
        time.sleep(0.1)
    assert alive
    elsewhere.kill()
    elsewhere.wait()
    heart.is_alive()
    clock[0] += 1e6
    assert not heart.is_alive()


def test_a_lock_given_back_is_nobodys_and_its_number_is_never_used_again(bucket):
    for number in (1, 2, 3):
        taken = FolderLock(bucket)
        taken.acquire(pytest.fail)
        assert numbers(bucket) == [f"{number:06}.json"]
        assert Heartbeat(bucket).is_alive()
        taken.check_held()
        taken.release()
        assert not Heartbeat(bucket).is_alive()


def test_a_beat_that_is_on_its_way_does_not_take_back_a_lock_given_back(bucket, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    taken = FolderLock(bucket)
    beat, begun = taken.store.beat, threading.Event()

    def beat_slowly():
        begun.set()
        time.sleep(0.3)
        beat()

    taken.store.beat = beat_slowly
    taken.acquire(pytest.fail)
    assert begun.wait(600)
    taken.release()
    time.sleep(0.5)
    assert not Heartbeat(bucket).is_alive()


def test_who_lost_the_lock_finds_out_and_does_not_give_anothers_back(bucket):
    first, second = FolderLock(bucket), FolderLock(bucket)
    first.acquire(pytest.fail)
    (bucket / "lock" / "000001.json").write_bytes(b'{"released": true}')
    second.acquire(pytest.fail)
    with pytest.raises(FaultError, match="was taken over by process"):
        first.check_held()
    first.release()
    second.check_held()
    second.release()
    with pytest.raises(FaultError, match="was taken over by process"):
        first.check_held()


def test_a_folder_that_vanished_is_noticed(bucket):
    taken = FolderLock(bucket)
    taken.acquire(pytest.fail)
    (bucket / "lock" / "000001.json").unlink()
    with pytest.raises(FaultError, match="lock is gone"):
        taken.check_held()
    taken.release()
    assert bucket.objects() == []


def test_one_so_slow_that_others_came_and_went_meanwhile_does_not_get_a_number_of_the_past(bucket):
    slow, fast = Numbered(bucket), [Numbered(bucket) for _ in range(2)]
    last = slow._last
    slow._last = lambda: 0  # What it saw before it slept.
    for number, place in enumerate(fast):
        place.read()
        assert place.take({"token": str(number)}, None)
        place.give_back()
    slow_created = slow._is_created

    def create_and_wake(number, holder):
        slow._last = last
        return slow_created(number, holder)

    slow._is_created = create_and_wake
    assert numbers(bucket) == ["000002.json"]
    assert not slow.take({"token": "slow"}, None)
    assert fast[1].read()["token"] == "1"


def test_a_put_that_was_made_twice_since_its_answer_got_lost_takes_the_lock(bucket):
    holder = {"token": "mine"}
    (bucket / "lock" / "000001.json").write_bytes(json.dumps(holder).encode())
    place = Numbered(bucket)
    place._last = lambda: 0  # Before its first put.
    assert place._is_created(1, holder)
    assert not place._is_created(1, {"token": "another's"})


@pytest.mark.parametrize(
    "content", [b"[]", b"\xff", b'{"machine": 3, "pid": [], "token": {}}', b""]
)
def test_whatever_stands_in_a_lock_it_ends_by_the_heartbeat(bucket, monkeypatch, content):
    (bucket / "lock" / "000007.json").write_bytes(content)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    taken = FolderLock(bucket)
    taken.acquire(print)
    taken.release()
    assert numbers(bucket) == ["000008.json"]


def test_of_many_that_come_at_once_one_gets_the_lock_of_a_dead_holder(bucket):
    dead = FolderLock(bucket)
    dead._holder["process_created"] = 1.0  # For this process.
    assert dead.store.take(dead._holder, None)
    results = []

    def come():
        with contextlib.suppress(TryAgainError):
            taken = FolderLock(bucket)
            taken.acquire(pytest.fail)
            results.append(taken)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = results
    winner.check_held()
    winner.release()
