import contextlib
import errno
import os
import random
import shutil
import string
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from resnet_flax.errors import FaultError, UserError
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.runtime.parallel import Devices
from resnet_flax.storage import step_folders, sums
from resnet_flax.storage.checkpoint_writer import CheckpointWriter
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.sums import SUMS
from resnet_flax.training import optim, steps


def writer(folder, keep_every=0, attempt=1, held=contextlib.nullcontext, say=print, config="ours"):
    return CheckpointWriter(
        folder, keep_every=keep_every, attempt=attempt, held=held, say=say, config=config
    )


def save(folder, *steps, test_errors=None, **kwargs):
    with writer(folder, **kwargs) as saving:
        for step in steps:
            saving.save(step, {"value": jnp.full(300, step, jnp.float32)}, test_errors or {})


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def state():
    model = build_resnet("cifar", 8, "pad", (4, 8, 8), num_classes=10)
    mean = np.ones((8, 8, 1), np.float32)
    return steps.init_state(model, optim.sgd(lambda _: 0.1), np.uint32(2**32 - 1), mean)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Steps 1 and 2; tests work on copies."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    save(folder, 1, 2)
    return folder


def test_a_state_is_restored_bit_for_bit_in_another_process_of_the_library(tmp_path, state):
    on_devices = Devices().replicate(state)
    with writer(tmp_path / "checkpoints") as saving:
        saving.save(3, on_devices, {})
    restored = Checkpoints(tmp_path / "checkpoints").restore_into(jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(state))
    dtypes = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (restored, state)]
    assert dtypes[0] == dtypes[1]


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    devices = Devices()
    add = devices.map(lambda s, x: s + 1, (False, True), donate=0)
    state = devices.replicate(np.zeros(1 << 20, np.float32))
    with writer(tmp_path) as saving:
        for step in (1, 2):
            state = add(state, devices.shard(np.zeros(4)))
            saving.save(step, {"value": state}, {})
            state = add(state, devices.shard(np.zeros(4)))
    first, second = (Checkpoints(tmp_path).restore(step)["value"] for step in (1, 2))
    np.testing.assert_array_equal(first, 1)
    np.testing.assert_array_equal(second, 3)


# With [0.1] Orbax took the path for a pattern, with a backslash TensorStore wrote elsewhere.
STRANGE = [
    string.printable.split("\t")[0].replace("/", ""), "[0.1]", "a\\b", "*", "%2F", "{x,y}", "s3:",
    "x|zip:", " ", "-x", "é 日本 🙂", "n" * 250,
]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux numbers folders")
def test_a_folder_of_any_name_keeps_its_checkpoints(tmp_path):
    folder = tmp_path
    for number, name in enumerate(STRANGE):
        below, folder = (folder / name, folder / name / "checkpoints")
        folder.mkdir(parents=True)
        save(folder, number)
        assert Checkpoints(folder).restore()["value"][0] == number
        assert [path.name for path in below.iterdir()] == ["checkpoints"]
        folder = below if number < 6 else tmp_path  # A path may have 4096 bytes.
    assert len(list(tmp_path.rglob(SUMS))) == len(STRANGE)


FINE: dict[str, Any] = {"a": {"b": np.array([np.nan, -0.0], np.float32)}, "c": np.zeros(2, np.int8)}


@pytest.mark.parametrize(
    "found",
    [
        {"a": {"b": np.array([np.nan, 0.0], np.float32)}, "c": FINE["c"]},
        {"a": {"b": -FINE["a"]["b"]}, "c": FINE["c"]},
        {"a": {"b": FINE["a"]["b"].view(np.int32)}, "c": FINE["c"]},
        {"a": {"b": FINE["a"]["b"][:, None]}, "c": FINE["c"]},
        {"a": {"b": FINE["a"]["b"]}},
        {"a": {"b": FINE["a"]["b"], "d": FINE["c"]}, "c": FINE["c"]},
    ],
)
def test_a_step_counts_only_if_every_bit_of_it_is_read_back(tmp_path, monkeypatch, found):
    with writer(tmp_path) as saving:
        saving.save(1, FINE, {})
    write = ocp.save_async
    monkeypatch.setattr(ocp, "save_async", lambda path, tree: write(path, found))
    line = r"Cannot save step 2 in .*: (a\.b|a\.d|c) was read back with other bits .* safe\. .*"
    with pytest.raises(FaultError, match=line), writer(tmp_path) as saving:
        saving.save(2, FINE, {})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_step_that_cannot_be_read_back_is_none(tmp_path, monkeypatch):
    write = ocp.save_async

    def lose(path, tree):
        response = write(path, tree)
        response.result()
        (path / "state" / "manifest.ocdbt").unlink()
        return response

    monkeypatch.setattr(ocp, "save_async", lose)
    with pytest.raises(FaultError, match="step 1 in .*: it cannot be read back") as error:
        save(tmp_path, 1)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "keep_every, test_errors, kept",
    [
        (0, {}, [40, 50]),
        (0, {10: 0.3, 20: 0.2, 30: 0.25}, [20, 40, 50]),
        (0, {10: 0.3, 50: 0.2}, [40, 50]),
        (0, {10: 0.2, 20: 0.2}, [10, 40, 50]),  # The first of equals.
        (0, {15: 0.1, 30: 0.2}, [30, 40, 50]),  # 15 was evaluated and never saved.
        (20, {10: 0.1}, [10, 20, 40, 50]),
    ],
)
def test_the_last_two_the_best_and_every_nth_are_kept(keep_every, test_errors, kept):
    steps = [10, 20, 30, 40, 50]
    assert step_folders.kept_steps(steps, keep_every, test_errors) == set(kept)


def test_the_step_before_the_first_is_kept():
    assert step_folders.kept_steps([0, 10, 20, 30], 0, {10: 0.1}) == {0, 10, 20, 30}
    assert step_folders.kept_steps([0, 10, 20, 30], 0, {}) == {0, 20, 30}
    assert step_folders.kept_steps([], 0, {}) == set()


def test_what_is_not_to_be_kept_is_deleted(tmp_path):
    save(tmp_path, 10, 20, 30, 40, keep_every=20, test_errors={10: 0.1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20", "30", "40"]
    save(tmp_path, 50, keep_every=20, test_errors={20: 0.1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "40", "50"]


def test_a_wrong_step_is_answered_with_those_there_are(two_steps):
    saved = Checkpoints(two_steps)
    assert saved.restore(1)["value"][0] == 1
    assert saved.restore()["value"][0] == 2
    with pytest.raises(UserError, match=r"No checkpoint of step 3 .*there are: \[1, 2\]"):
        saved.restore(3)
    with pytest.raises(UserError, match=r"No checkpoint of step '2' .*there are: \[1, 2\]"):
        saved.restore("2")


def test_an_empty_folder_is_answered_in_words(tmp_path):
    with pytest.raises(UserError, match="No checkpoint in"):
        Checkpoints(tmp_path).restore()


def test_what_a_crash_left_of_a_save_is_no_checkpoint_and_is_cleared_by_the_next_writer(tmp_path):
    save(tmp_path, 1)
    # `.2.old` and `.2.part` are of earlier versions.
    left = (".2.part", ".2.part.orbax-checkpoint-tmp", ".0.old", ".3.2.part", ".3.ab12.old")
    for name in (*left, ".my.notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    (tmp_path / ".9.1.part").symlink_to(tmp_path / ".my.notes")
    assert Checkpoints(tmp_path).steps() == [1]
    with writer(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".my.notes", "1"]
    assert (tmp_path / ".my.notes" / "file").exists()


def test_a_deletion_that_failed_is_in_the_way_of_no_other(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    said: list[str] = []
    with writer(tmp_path, say=said.append) as saving:
        for step in (1, 2, 3, 1, 4):
            with monkeypatch.context() as patch:
                if step == 3:
                    patch.setattr(shutil, "rmtree", fail)
                saving.save(step, {"value": jnp.zeros(3)}, {})
                saving.wait()
    assert len(said) == 1 and "Cannot delete an old checkpoint" in said[0]
    assert Checkpoints(tmp_path).steps() == [3, 4]
    with writer(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_a_step_appears_at_once_and_whole_while_others_read(tmp_path):
    save(tmp_path, 1)
    with writer(tmp_path) as saving:
        saving.save(2, {"value": jnp.ones(1 << 22)}, {})
        seen = set()
        while 2 not in seen:
            saving.poll()  # It raises if the save fails.
            reader = Checkpoints(tmp_path, say=pytest.fail)
            seen.add(reader.last_good())
            reader.restore()
    assert seen <= {1, 2}


def test_a_step_is_on_disk_before_it_appears_and_so_is_its_name(tmp_path, monkeypatch):
    synced, fsync, rename = set(), os.fsync, Path.rename

    def note(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def look(path, target):
        if path.name.endswith(".part"):
            assert not [p for p in (path, *path.rglob("*")) if p.stat().st_ino not in synced]
            synced.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", look)
    save(tmp_path, 1)
    assert tmp_path.stat().st_ino in synced


def test_a_reader_makes_no_folder(tmp_path):
    with pytest.raises(UserError, match="No checkpoint in"):
        Checkpoints(tmp_path / "checkpoints").restore()
    assert not list(tmp_path.iterdir())


def test_no_file_of_a_checkpoint_names_the_machines_folders(tmp_path):
    with writer(tmp_path) as saving:
        saving.save(1, {"a": jnp.zeros(2)}, {})
    files = [path for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert files
    assert not [file for file in files if tmp_path.name.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    "other", [{"a": jnp.zeros(3)}, {"a": jnp.zeros(2, int)}, {"b": jnp.zeros(2)}, {}]
)
def test_another_models_checkpoint_is_refused_naming_a_leaf(tmp_path, other):
    with writer(tmp_path) as saving:
        saving.save(1, {"a": jnp.zeros(2), "c": jnp.zeros(2)}, {})
    saved = Checkpoints(tmp_path)
    saved.restore_into({"a": jnp.ones(2), "c": jnp.ones(2)})
    with pytest.raises(UserError, match="of another model: expected [abc] to be"):
        saved.restore_into({**other, "c": jnp.ones(2)})


def flip_a_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def assert_step_1_is_used_instead(folder, damaged):
    """By a reader, who changes nothing, and by a writer, who sets step 2 aside."""
    said: list[str] = []
    readers = Checkpoints(folder, say=said.append), writer(folder, say=said.append).reader
    for opened in readers:
        before = files(folder)
        np.testing.assert_array_equal(opened.restore()["value"], np.full(300, 1))
        (line,) = said
        assert str(damaged) in line
        assert "step 1 is used" in line
        said.clear()
        if opened is readers[0]:
            assert files(folder) == before
            with pytest.raises(UserError, match=f"2 is damaged .*{damaged}"):
                opened.restore(2)
        else:
            assert len(files(folder)) == len(before)
            assert opened.steps() == [1]
            assert sorted(path.name for path in folder.iterdir()) == ["1", "2.damaged"]
            assert opened.has_damaged()


def test_none_of_60_flipped_bits_is_overlooked(two_steps, tmp_path):
    rng = random.Random(0)
    for trial in range(60):
        folder = tmp_path / str(trial)
        shutil.copytree(two_steps, folder)
        victim = rng.choice([path for path in files(folder / "2") if path.stat().st_size])
        flip_a_bit(victim, rng)
        name = "" if victim.name == SUMS else victim.relative_to(folder / "2")
        assert str(name) in (step_folders.damage_of(folder / "2") or pytest.fail(str(victim)))
        if trial < 5:  # What is found to be damaged is never loaded.
            assert_step_1_is_used_instead(folder, name)


@pytest.mark.parametrize("damage", ["truncate", "delete", "grow"])
def test_no_file_may_be_shorter_longer_or_missing(two_steps, tmp_path, damage):
    for trial, path in enumerate(files(two_steps / "2")):
        folder = tmp_path / str(trial)
        shutil.copytree(two_steps, folder)
        name = path.relative_to(two_steps / "2")
        victim = folder / "2" / name
        if damage == "delete":
            victim.unlink()
        elif damage == "grow":
            victim.write_bytes(victim.read_bytes() + b"\0")
        elif victim.stat().st_size:
            victim.write_bytes(victim.read_bytes()[:-1])
        else:
            continue
        damaged = "" if victim.name == SUMS else str(name)
        assert damaged in (step_folders.damage_of(folder / "2") or pytest.fail(str(victim)))
        if trial < 2:
            assert_step_1_is_used_instead(folder, damaged)


def test_sums_cut_at_a_line_do_not_leave_a_file_unverified(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "copy")
    sums = tmp_path / "copy" / "2" / SUMS
    lines = sums.read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        sums.write_text("".join(lines[:kept]))
        assert Checkpoints(tmp_path / "copy", say=print).last_good() == 1


def test_a_second_damaged_save_of_the_same_step_is_set_aside_beside_the_first(tmp_path):
    for _ in range(3):
        save(tmp_path, 2)
        (tmp_path / "2" / SUMS).unlink()
        assert writer(tmp_path).reader.last_good() is None
    assert len(list(tmp_path.iterdir())) == 3


def test_the_sums_are_those_of_the_standard_tool(two_steps):
    done = subprocess.run(["sha256sum", "--check", SUMS], cwd=two_steps / "2", capture_output=True)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(files(two_steps / "2")) - 1


def test_a_checkpoint_under_another_steps_name_is_damaged(two_steps, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(two_steps, folder)
    shutil.copytree(folder / "2", folder / "7")
    said: list[str] = []
    assert Checkpoints(folder, say=said.append).last_good() == 2
    assert "7 is damaged (it was saved as step 2); step 2 is used." in said[0]


def test_a_step_of_another_run_is_refused_and_one_of_an_older_version_is_not(two_steps, tmp_path):
    save(tmp_path / "old", 1, config=None)
    for folder, config in [(two_steps, "ours"), (two_steps, None), (tmp_path / "old", "ours")]:
        assert Checkpoints(folder, config=config).restore()["value"].size
    theirs = Checkpoints(two_steps, config="theirs")
    for refused in (theirs.restore, theirs.last_good, lambda: theirs.restore(1)):
        with pytest.raises(
            UserError, match=r"\d was saved by a run of another config .*ours.*Move"
        ):
            refused()
    with writer(shutil.copytree(two_steps, tmp_path / "copy"), config="theirs") as resuming:
        with pytest.raises(UserError, match="another config"):
            resuming.reader.last_good()
        assert resuming.reader.steps() == [1, 2]


@pytest.mark.parametrize("lost", ["server", "permission", "disk"])
def test_what_cannot_be_read_now_is_no_damage_and_is_left_as_it_is(
    two_steps, tmp_path, monkeypatch, lost
):
    folder = shutil.copytree(two_steps, tmp_path / "copy")
    before = files(folder)
    code = {"server": errno.ESTALE, "permission": errno.EACCES, "disk": errno.EIO}[lost]

    def unreadable(path):
        raise OSError(code, os.strerror(code), str(path))

    message = rf"Cannot read .*copy/\d/.*{os.strerror(code)}"
    with monkeypatch.context() as patch:
        patch.setattr(sums, "open_regular", unreadable)
        for opened in (Checkpoints(folder), writer(folder, say=pytest.fail).reader):
            for read in (opened.last_good, opened.restore, lambda o=opened: o.restore(1)):
                with pytest.raises(UserError, match=message):
                    read()
    assert files(folder) == before
    assert writer(folder, say=pytest.fail).reader.last_good() == 2


@pytest.mark.parametrize("name", ["STEP", "CONFIG_SHA256"])
def test_a_label_that_is_no_text_is_refused_in_one_line(two_steps, tmp_path, name):
    folder = shutil.copytree(two_steps, tmp_path / "copy")
    (folder / "2" / name).write_bytes(b"\xff")
    sums.write_sums(folder / "2")
    with pytest.raises(UserError, match="2 (is damaged|was saved by a run of another config)"):
        Checkpoints(folder, config="ours").restore(2)


def test_a_step_from_a_table_is_the_same_step(two_steps):
    assert Checkpoints(two_steps).restore(np.float64(1))["value"][0] == 1


@pytest.mark.parametrize(
    "name", ["Thumbs.db", "Desktop.ini", ".DS_Store", "._d", ".nfs0001", ".AppleDouble/STEP"]
)
def test_what_a_system_leaves_in_a_step_is_no_damage_and_another_file_is(two_steps, tmp_path, name):
    folder = shutil.copytree(two_steps, tmp_path / "copy")
    for below in ("", "state", "state/ocdbt.process_0/d"):
        left = folder / "2" / below / name
        left.parent.mkdir(exist_ok=True)
        left.write_text("left")
    assert Checkpoints(folder, say=pytest.fail).restore()["value"][0] == 2
    (folder / "2" / "state" / "_sharding").write_text("{}")
    assert Checkpoints(folder, say=print).last_good() == 1


def test_many_damaged_steps_are_one_line(two_steps, tmp_path):
    folder = shutil.copytree(two_steps, tmp_path / "copy")
    for step in range(10, 110):
        (folder / str(step)).mkdir()
    said: list[str] = []
    readers = Checkpoints(folder, say=said.append), writer(folder, say=said.append).reader
    for opened in readers:
        assert opened.last_good() == 2
        assert "copy/109 is damaged (SHA256SUMS is missing)" in said[-1]
        assert "and so are 99 before it; step 2 is used." in said[-1]
    assert len(said) == 2
    assert Checkpoints(folder).steps() == [1, 2]


def test_a_step_that_is_a_link_is_not_used_and_what_it_leads_to_is_left(two_steps, tmp_path):
    folder, outside = tmp_path / "copy", tmp_path / "outside" / "9"
    shutil.copytree(two_steps, folder)
    shutil.copytree(two_steps / "2", outside)
    shutil.rmtree(folder / "1")
    for step in ("1", "9"):
        (folder / step).symlink_to(outside)
    before = files(outside)
    said: list[str] = []
    readers = Checkpoints(folder, say=said.append), writer(folder, say=said.append).reader
    for opened in readers:
        assert opened.last_good() == 2
        assert "9 is damaged (it is a symbolic link)" in said[-1]
    save(folder, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "9.damaged"]
    assert files(outside) == before


def test_what_is_no_checkpoint_is_left_out(two_steps, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(two_steps, folder)
    shutil.copytree(folder / "2", folder / "02")
    (folder / "5").write_text("")
    (folder / ("9" * 30)).mkdir()
    assert Checkpoints(folder).steps() == [1, 2]
    save(folder, 8, 9)
    assert Checkpoints(folder).steps() == [8, 9]


def test_an_old_checkpoint_that_cannot_be_deleted_fails_no_save(two_steps, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(two_steps, folder)

    def fail(path):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(shutil, "rmtree", fail)
    said: list[str] = []
    save(folder, 3, say=said.append)
    assert Checkpoints(folder).last_good() == 3
    assert "Cannot delete an old checkpoint in" in said[0]


def lost_while_it_saves():
    """A `held` whose lock is lost while a save is under way."""
    answers = iter([None, None, FaultError("taken over")])

    def held():
        if error := next(answers):
            raise error
        return contextlib.nullcontext()

    return held


def test_an_earlier_writer_that_wakes_leaves_alone_what_the_next_one_is_saving(tmp_path):
    earlier = writer(tmp_path, attempt=1, held=lost_while_it_saves())
    with pytest.raises(FaultError, match="taken over"), earlier:
        (tmp_path / ".4.2.part").mkdir()
        earlier.save(4, {"value": jnp.zeros(3)}, {})
    assert [path.name for path in tmp_path.iterdir()] == [".4.2.part"]


def test_a_save_that_fails_is_one_line_and_leaves_the_last_one(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def fail(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sums, "write_sums", fail)
    with pytest.raises(FaultError, match=r"save step 2 in .*: No space left on device\.") as error:
        save(tmp_path, 2)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert Checkpoints(tmp_path).restore()["value"][0] == 1


def test_a_failed_save_is_heard_of_before_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sums, "write_sums", lambda folder: 1 / 0)
    with writer(tmp_path) as saving:
        saving.save(1, {"value": jnp.zeros(3)}, {})
        with pytest.raises(FaultError, match="Cannot save step 1"):
            for _ in range(1000):
                saving.poll()
                time.sleep(0.01)


def test_a_writer_that_lost_its_lock_neither_saves_nor_deletes(tmp_path):
    save(tmp_path, 1, 2)
    with pytest.raises(FaultError, match="taken over"):
        save(tmp_path, 3, held=lost_while_it_saves())
    assert Checkpoints(tmp_path).steps() == [1, 2]
