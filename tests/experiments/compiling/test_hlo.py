"""Programs are read right: this machine's own, and lines that XLA wrote for a TPU."""

import jax
import jax.numpy as jnp
import pytest

from experiments.compiling import findings, hlo
from resnet_flax.runtime.parallel import DATA_AXIS, Devices

# Sizes as XLA's buffer assignment has them.
ON_TPU = {
    "u8[50000,32,32,3]{2,1,3,0:T(8,128)(4,1)}": 614_400_000,
    "u8[50000,32,32,3]{0,2,3,1:T(32,128)(4,1)}": 153_747_456,
    "f32[3,3,64,64]{3,2,1,0:T(8,128)}": 294_912,
    "s32[50000]{0:T(1024)}": 200_704,
    "f32[]{:T(128)}": 512,
}


@pytest.mark.parametrize("text, size", ON_TPU.items())
def test_an_array_has_the_bytes_that_xla_gives_it(text, size):
    (array,) = hlo.arrays(text)
    assert array.bytes == size
    assert array.space == 0


def test_an_array_on_the_chip_is_not_in_main_memory():
    on_chip, outside = hlo.arrays("(f32[64]{0:T(128)S(1)}, f32[64]{0:T(128)})")
    assert (on_chip.space, outside.space) == (1, 0)


@pytest.fixture(scope="module")
def program():
    """4 devices take 5 steps. Each adds a row of a table to all of 7 others, and sums over devices.

    The table is large. A step needs one row of it.
    """

    def steps(total, table, rows):
        def step(total, row):
            def add(i, total):
                return jnp.sin(total) + i

            total = jax.lax.fori_loop(0, 7, add, total + table[row])
            return jax.lax.psum(total, DATA_AXIS), None

        return jax.lax.scan(step, total, rows)[0]

    devices = Devices("shard_map")
    shapes = [
        devices.replicated_shapes(jax.ShapeDtypeStruct((1024,), jnp.float32)),
        devices.replicated_shapes(jax.ShapeDtypeStruct((9999, 1024), jnp.float32)),
        devices.sharded_shape((5, 4), jnp.int32, axis=1),
    ]

    def first(total, table, rows):
        return steps(total, table, rows[:, 0])

    mapped = devices.map(first, sharded=(False, False, True))
    lowered = mapped.lower(*shapes)  # type: ignore[attr-defined]
    return hlo.Program(lowered.compile().as_text())


def test_a_collective_counts_in_each_step(program):
    found = findings.collectives(list(program.runs()), steps=5)
    assert found == {"all-reduce": {"count": 1, "bytes": 4096}}


BESIDE = """
ENTRY %main (p: f32[1024], q: f32[4096]) -> (f32[1024], f32[4096]) {
  %p = f32[1024]{0} parameter(0)
  %q = f32[4096]{0} parameter(1)
  %start = (f32[1024]{0}, f32[4096]{0}) all-reduce-start(%p, %q), to_apply=%add
  ROOT %done = (f32[1024]{0}, f32[4096]{0}) all-reduce-done(%start)
}
"""


def test_an_all_reduce_of_two_arrays_beside_other_work_counts_both():
    found = findings.collectives(list(hlo.Program(BESIDE).runs()), steps=1)
    assert found == {"all-reduce": {"count": 1, "bytes": 4 * (1024 + 4096)}}


def test_a_loop_inside_a_step_is_found_by_its_length(program):
    runs = list(program.runs())
    (loop,) = findings.serial_loops(program, runs, images=7)
    assert loop["times"] == 7
    assert findings.serial_loops(program, runs, images=5) == []  # That of the steps.


def test_of_an_array_that_is_sliced_only_the_slice_is_moved(program):
    moved = sum(program.moved(run) * run.times for run in program.runs())
    # A step moves some vectors of 4 KB, and each turn of its loop one or two; the table has 41 MB.
    assert 5 * 7 * 4096 < moved < 5 * 40 * 4096


RELAYOUT = """
ENTRY %main (p: u8[50000,32,32,3]) -> u8[50000,32,32,3] {
  %p = u8[50000,32,32,3]{0,2,3,1:T(32,128)(4,1)} parameter(0)
  %c = u8[50000,32,32,3]{0,2,3,1:T(32,128)(4,1)} copy(%p)
  ROOT %copy.1 = u8[50000,32,32,3]{2,1,3,0:T(8,128)(4,1)} copy(%c), metadata={op_name="f/while"}
}
"""


def test_a_copy_counts_only_if_it_changes_how_an_array_lies():
    found = findings.relayouts(program := hlo.Program(RELAYOUT), list(program.runs()), steps=10)
    assert found == [
        {
            "array": "u8[50000,32,32,3]",
            "bytes": 614_400_000,
            "times_a_step": 0.1,
            "source": "f/while",
        }
    ]
