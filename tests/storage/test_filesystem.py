import errno
import os
import stat
from pathlib import Path

import pytest

from resnet_flax.storage import filesystem, sums


@pytest.fixture
def folders_without_sync(monkeypatch):
    """A function: from then on, a folder's fsync fails with this error."""
    fsync = os.fsync
    filesystem._complain_of_folders.cache_clear()

    def fail_with(code, also_files=False):
        def fail(descriptor):
            if also_files or stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(code, os.strerror(code))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail)

    yield fail_with
    filesystem._complain_of_folders.cache_clear()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EPERM])
def test_where_folders_cannot_be_synced_all_goes_on_after_one_line(
    tmp_path, folders_without_sync, capsys, code
):
    folders_without_sync(code)
    for text in ("1", "2"):
        filesystem.write_text(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text
    sums.write_sums(tmp_path)
    assert sums.damage(tmp_path) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot sync a folder" in line and os.strerror(code) in line


@pytest.mark.parametrize("code, also_files", [(errno.EIO, False), (errno.EINVAL, True)])
def test_any_other_sync_that_fails_is_an_error(tmp_path, folders_without_sync, code, also_files):
    folders_without_sync(code, also_files)
    with pytest.raises(OSError, match=os.strerror(code)):
        filesystem.write_text(tmp_path / "file", "1")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left.*report.html'$"):
            filesystem.write_text(tmp_path / "report.html", "text")
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_the_error_names_the_file_and_no_other(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "another"))

    monkeypatch.setattr(Path, "open", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OSError, match="Read-only file system.*report.html'$"):
        filesystem.write_text(tmp_path / "report.html", "text")
