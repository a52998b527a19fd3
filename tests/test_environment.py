from pathlib import Path

import pytest

from resnet_flax import environment

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    not CPUINFO.exists() or "model name" not in CPUINFO.read_text(),
    reason="this system names its processor elsewhere",
)
def test_the_processor_has_the_name_that_linux_gives_it():
    names = {line.split(": ")[-1] for line in CPUINFO.read_text().splitlines() if "model n" in line}
    assert environment.describe()["processor"] in names


def test_a_commit_is_known_also_of_a_checkout_that_is_another_users(monkeypatch):
    known = environment.git_commit()
    # How git tests itself: nobody is then the owner of any checkout.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert environment.git_commit() == known
