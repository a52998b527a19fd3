"""Checkpoints in a bucket; those on a disk are in test_checkpoints.py."""

import contextlib
import os
import random
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.errors import FaultError, UserError
from resnet_flax.storage import bucket as buckets
from resnet_flax.storage.checkpoint_writer import CheckpointWriter
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.sums import SUMS


def writer(folder, attempt=1, held=contextlib.nullcontext, say=print):
    return CheckpointWriter(folder, keep_every=0, attempt=attempt, held=held, say=say)


def save(folder, *steps, **kwargs):
    with writer(folder, **kwargs) as saving:
        for step in steps:
            saving.save(step, {"value": jnp.full(300, step, jnp.float32)}, {})


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def below(folder, step):
    return (folder / str(step)).objects()


def test_what_was_saved_is_restored_and_only_the_bucket_keeps_it(bucket, temporary):
    save(bucket, 1, 2, 3)
    saved = Checkpoints(bucket)
    assert saved.steps() == [2, 3]
    np.testing.assert_array_equal(saved.restore()["value"], np.full(300, 3, np.float32))
    np.testing.assert_array_equal(saved.restore(2)["value"], np.full(300, 2, np.float32))
    with pytest.raises(UserError, match=r"No checkpoint of step 1 .*there are: \[2, 3\]"):
        saved.restore(1)
    assert below(bucket, 1) == []
    assert list(temporary.iterdir()) == []


def test_a_folder_without_a_step_is_answered_in_words(bucket):
    with pytest.raises(UserError, match="No checkpoint in s3://"):
        Checkpoints(bucket).restore()


def test_a_flipped_bit_is_never_loaded_and_the_step_before_is_used(bucket):
    save(bucket, 1, 2)
    name = random.Random(0).choice([n for n in below(bucket, 2) if n != SUMS])
    victim = bucket / "2" / name
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    before = bucket.objects()
    said: list[str] = []
    np.testing.assert_array_equal(Checkpoints(bucket, say=said.append).restore()["value"], 1)
    assert name in said[0] and "step 1 is used" in said[0]
    assert bucket.objects() == before
    with pytest.raises(UserError, match=f"2 is damaged .*{name}"):
        Checkpoints(bucket).restore(2)
    with writer(bucket, say=said.append) as opened:
        assert opened.reader.last_good() == 1
        assert "set aside as 2.damaged" in said[1]
        assert opened.reader.has_damaged()
        assert opened.reader.steps() == [1]
        assert below(bucket, 2) == []
        assert f"2.damaged/{name}" in bucket.objects()
        assert len(bucket.objects()) == len(before)


def test_a_half_uploaded_step_is_no_step_and_is_cleared_by_the_next_writer(bucket):
    save(bucket, 1, 2)
    (bucket / "2" / SUMS).unlink()
    (bucket / "7" / "state" / "d").write_bytes(b"half")
    assert Checkpoints(bucket, say=pytest.fail).last_good() == 1
    assert below(bucket, 7)
    with writer(bucket):
        assert {name.split("/")[0] for name in bucket.objects()} == {"1"}


def test_an_upload_that_breaks_off_is_one_line_and_no_step(bucket, temporary, monkeypatch):
    save(bucket, 1)
    upload, left = buckets.BucketPath.upload, iter(range(5))

    def break_off(self, file):
        if next(left, None) is None:
            raise OSError(5, "the network is down")
        upload(self, file)

    with monkeypatch.context() as patch, pytest.raises(FaultError) as error:
        patch.setattr(buckets.BucketPath, "upload", break_off)
        save(bucket, 2)
    assert "Cannot save step 2" in str(error.value) and "the network is down" in str(error.value)
    assert len(below(bucket, 2)) == 5
    assert list(temporary.iterdir()) == []
    assert Checkpoints(bucket, say=pytest.fail).last_good() == 1
    save(bucket, 2, attempt=2)
    assert Checkpoints(bucket, say=pytest.fail).last_good() == 2


def test_a_deletion_that_breaks_off_leaves_no_step(bucket, monkeypatch):
    save(bucket, 1, 2)
    (bucket / "1" / "0").write_bytes(b"")  # Before the sums, by its name.
    unlink = buckets.BucketPath.unlink

    def unlink_one(self):
        unlink(self)
        raise OSError(5, "the network is down")

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(buckets.BucketPath, "unlink", unlink_one)
        save(bucket, 3, say=said.append)
    assert "Cannot delete an old checkpoint" in said[0] and "the network is down" in said[0]
    assert Checkpoints(bucket, say=pytest.fail).steps() == [2, 3]


def test_a_writer_that_loses_its_lock_in_an_upload_stops_there_and_the_step_is_none(bucket):
    answers = iter([None] * 5)

    def held():
        if next(answers, 0) is not None:
            raise FaultError("taken over")
        return contextlib.nullcontext()

    with pytest.raises(FaultError, match="taken over"):
        save(bucket, 2, held=held)
    assert len(below(bucket, 2)) == 3  # Two looks were before Orbax began.
    assert not Checkpoints(bucket).steps()


def test_a_step_appears_at_once_and_whole_while_others_read(bucket):
    save(bucket, 1)
    with writer(bucket) as saving:
        saving.save(2, {"value": jnp.ones(1 << 18)}, {})
        seen = set()
        while 2 not in seen:
            saving.poll()  # It raises if the save fails.
            reader = Checkpoints(bucket, say=pytest.fail)
            seen.add(reader.last_good())
    assert seen <= {1, 2}


def test_a_name_that_leads_elsewhere_is_not_followed(bucket, temporary):
    save(bucket, 1)
    storage, key = bucket._storage, "/".join(bucket.parts[1:])
    for name in ("1/../../../outside", f"1/{temporary}/outside"):
        storage.pipe_file(f"{key}/{name}", b"evil")
    np.testing.assert_array_equal(Checkpoints(bucket).restore()["value"], 1)
    assert not list(Path(temporary).rglob("outside"))
    assert not (temporary.parent / "outside").exists()


def test_what_an_earlier_attempt_left_in_the_temporary_folder_is_cleared(bucket, temporary):
    with writer(bucket) as saving:
        saving.save(1, {"value": jnp.zeros(3)}, {})
        saving.wait()
        (staging,) = temporary.iterdir()
        assert list(staging.iterdir()) == []
        (staging / "2.1.part").mkdir()
        with writer(bucket, attempt=2):
            assert list(staging.iterdir()) == []


def test_what_another_users_attempt_left_is_in_nobodys_way(bucket, temporary, monkeypatch):
    with writer(bucket):
        (others,) = temporary.iterdir()
    others.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with writer(bucket, attempt=2):
        (mine,) = set(temporary.iterdir()) - {others}
    assert others.exists() and not mine.exists()
