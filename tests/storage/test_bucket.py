import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_flax.errors import UserError
from resnet_flax.storage import filesystem
from resnet_flax.storage.bucket import BucketPath
from tests import buckets

CHECK = """
import sys
from resnet_flax.storage import filesystem
sys.modules.update(dict.fromkeys(sys.argv[2:]))  # Not installed.
try:
    filesystem.check_reachable(filesystem.path(sys.argv[1]))
except filesystem.UserError as error:
    print(error)
"""


def what_is_said(folder, *missing, **environment):
    environment = {name: value for name, value in (os.environ | environment).items() if value}
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(folder), *missing],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return line


@pytest.mark.parametrize("name", ["s3://runs/a/b", "gs://runs/a/b/", "s3://runs"])
def test_a_name_in_a_bucket_stays_as_it_is(name):
    path = filesystem.path(name)
    assert isinstance(path, BucketPath)
    assert str(path) == name.rstrip("/")
    assert filesystem.path(path) == filesystem.path(str(path)) == path
    assert str(path / "x" / "y.json") == f"{name.rstrip('/')}/x/y.json"
    assert (path / "x").parent == path
    assert (path / "x.json").with_name("z") == path / "z"


def test_a_folder_on_a_disk_is_an_absolute_path():
    assert filesystem.path("a/b") == Path.cwd() / "a" / "b"
    assert filesystem.path("~/a:b") == Path.home() / "a:b"
    assert type(filesystem.path("a")) is type(Path())


@pytest.mark.parametrize("name", ["s4://runs/a", "s3:/runs/a", "s3:///a", "file:///a", "GS://a"])
def test_another_url_is_refused_naming_those_that_are_accepted(name):
    with pytest.raises(UserError, match=f"s3://BUCKET/NAME, gs://BUCKET/NAME, got {name}"):
        filesystem.path(name)


@pytest.mark.parametrize("name", ["a\nb", "a\0", "~/\x85", "not UTF-8: \udcff", "s3://a/b\r"])
def test_a_name_that_no_line_can_hold_is_refused_in_one(name):
    with pytest.raises(UserError, match="Expected a folder named by .*without") as error:
        filesystem.path(name)
    assert len(str(error.value).splitlines()) == 1


def test_the_home_of_nobody_is_no_folder():
    with pytest.raises(UserError, match="got ~no_such_user/run: there is no such home"):
        filesystem.path("~no_such_user/run")


def test_what_is_put_is_there_and_what_others_put_is_seen_at_once(bucket):
    file = bucket / "folder" / "file"
    assert not file.exists() and not bucket.exists() and not bucket.is_dir()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    filesystem.write_text(file, "é")
    assert file.read_text() == "é"
    assert bucket.is_dir() and (bucket / "folder").exists()
    assert list(bucket.iterdir()) == [bucket / "folder"]
    assert list((bucket / "folder").glob("f*")) == [file]
    assert bucket.objects() == ["folder/file"]
    assert list((bucket / "folder").iterdir()) == [file]
    put = "from resnet_flax.storage.filesystem import path, write_text;"
    put += f"write_text(path('{file}2'), '')"
    subprocess.run([sys.executable, "-c", put], check=True)
    assert bucket.objects() == ["folder/file", "folder/file2"]
    assert len(list((bucket / "folder").iterdir())) == 2
    file.unlink()
    file.unlink()
    assert bucket.objects() == ["folder/file2"]


def test_an_object_is_created_once(bucket):
    assert (bucket / "lock").create(b"1")
    assert not (bucket / "lock").create(b"2")
    assert (bucket / "lock").read_bytes() == b"1"


def test_lines_are_appended_to_what_is_there(anywhere):
    file = anywhere / "lines"
    for line in ("one", "two"):
        filesystem.Lines(file).append(line)
    lines = filesystem.Lines(file)
    lines.replace("zero\n")
    lines.append("one")
    assert file.read_text() == "zero\none\n"


def test_only_whole_lines_are_read_on_and_another_file_from_its_start(anywhere):
    file = anywhere / "lines"
    filesystem.write_text(file, "one\ntw")
    whole, place = filesystem.read_on(file, filesystem.ReadPosition(), 100)
    assert whole == b"one\n"
    assert filesystem.read_on(file, place, 100) == (b"", place)
    filesystem.write_text(file, "another\n")
    whole, after = filesystem.read_on(file, place, 100)
    assert whole == b"another\n"
    assert after.file != place.file


@pytest.mark.usefixtures("_storage")
def test_a_bucket_that_does_not_exist_is_one_line():
    with pytest.raises(UserError, match=r"use s3://nowhere/run: the bucket does not exist\."):
        filesystem.check_reachable(filesystem.path("s3://nowhere/run"))
    with pytest.raises(OSError, match="the bucket does not exist"):
        filesystem.write_text(filesystem.path("s3://nowhere/run"), "")


def test_what_is_not_installed_is_one_line_that_says_how_to(bucket):
    assert what_is_said(bucket, "s3fs") == (
        f"Cannot use {bucket}: s3fs is not installed; install it with:"
        " pip install -e '.[bucket]' -c requirements.lock."
    )


def test_no_credentials_are_one_line(bucket):
    said = what_is_said(bucket, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", HOME="/nowhere")
    assert said == f"Cannot use {bucket}: Unable to locate credentials."


def test_an_endpoint_that_is_not_there_is_one_line(bucket):
    said = what_is_said(bucket, AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert said.startswith(f"Cannot use {bucket}: Could not connect to the endpoint URL:")


def test_a_user_who_is_refused_is_told_so_in_one_line():
    with buckets.serve(INITIAL_NO_AUTH_ACTION_COUNT="0") as environment:
        said = what_is_said("s3://runs/run", **environment)
    assert said.startswith("Cannot use s3://runs/run: access refused (")


@pytest.mark.slow
def test_an_endpoint_that_does_not_answer_is_one_line_within_a_minute(bucket):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        said = what_is_said(bucket, AWS_ENDPOINT_URL=address)
    assert said.startswith(f"Cannot use {bucket}: ")
    assert time.monotonic() - began < 60
