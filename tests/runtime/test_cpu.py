import os
import subprocess
import sys

import jax
import pytest

from resnet_flax.errors import UserError
from resnet_flax.runtime import cpu

SCRIPT = """
import jax
from resnet_flax.runtime import cpu
from resnet_flax.errors import UserError
cpu.cores = lambda: 6
for batch_size in {batch_sizes}:
    cpu.use_cores(batch_size)
    print(jax.config.jax_num_cpu_devices)
"""


def device_counts(batch_sizes, **environment):
    set_here = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    clean = {k: v for k, v in os.environ.items() if k not in set_here}
    command = [sys.executable, "-c", SCRIPT.format(batch_sizes=batch_sizes)]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


def test_six_cores_share_a_batch_equally_with_64_images_each_or_more():
    shares = {1: 1, 32: 1, 127: 1, 128: 2, 192: 3, 260: 4, 254: 2, 1024: 4, 6000: 6}
    assert device_counts(list(shares)) == list(shares.values())


EVALUATION = """
import atexit, runpy, sys
import jax
from resnet_flax.runtime import cpu
cpu.cores = lambda: 96
atexit.register(lambda: print(jax.device_count()))
sys.argv = ["evaluate", "--workdir=tests/golden/run"]
runpy.run_module("experiments.evaluate", run_name="__main__")
"""


def test_an_evaluation_of_512_images_at_once_copies_its_images_to_8_devices():
    set_here = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    clean = {k: v for k, v in os.environ.items() if k not in set_here}
    command = [sys.executable, "-c", EVALUATION]
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert done.stdout.split()[-1] == "8", done.stderr


def test_a_device_count_of_the_users_stands():
    assert device_counts([128], JAX_NUM_CPU_DEVICES="3") == [3]


def test_a_device_count_among_xlas_flags_stands(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_force_host_platform_device_count=4")
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("overruled"))
    cpu.use_cores(128)


@pytest.mark.parametrize("given", ["0", "-1", "x", "", "2.0"])
def test_a_device_count_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", given)
    with pytest.raises(UserError, match=f"JAX_NUM_CPU_DEVICES to be 1 or more.*got '{given}'"):
        cpu.check_count()


@pytest.mark.parametrize(
    "given, flags",
    [
        ("", "--xla_disable_hlo_passes=cse_barrier_expander"),
        ("--xla_a=1", "--xla_a=1 --xla_disable_hlo_passes=cse_barrier_expander"),
        ("--xla_disable_hlo_passes=", "--xla_disable_hlo_passes="),
    ],
)
def test_barriers_are_kept_unless_the_user_disables_passes_of_their_own(monkeypatch, given, flags):
    monkeypatch.setenv("XLA_FLAGS", given)
    cpu.keep_barriers()
    assert os.environ["XLA_FLAGS"] == flags


def test_barriers_are_kept_in_compiled_programs():
    def doubled(x):
        return jax.lax.optimization_barrier(x * 2) + 1

    # jax's own, not the library's: what the flag is for, and that this jax still knows it.
    assert "opt-barrier" in jax.jit(doubled).lower(1.0).compile().as_text()
