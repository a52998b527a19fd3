"""Every test runs on 4 virtual CPU devices, with implicit rank promotion an error."""

import os
import uuid
from pathlib import Path

import hypothesis
import jax
import pytest

from resnet_flax.runtime import cpu

# XLA compiles the tests' programs in a third of the time. They run slower, but are small and take
# few steps. With XLA_FLAGS set, even to nothing, tests run the programs that users get.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# For `compile(...)`, where a test is about the optimised program: XLA's defaults.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if jax.__version_info__ < (0, 11):  # Later, XLA ends at a flag that it does not know any more.
    QUICK["xla_cpu_use_fusion_emitters"] = False
    OPTIMIZED["xla_cpu_use_fusion_emitters"] = True
os.environ.setdefault("XLA_FLAGS", " ".join(f"--{name}={value}" for name, value in QUICK.items()))
os.environ["JAX_PLATFORMS"] = "cpu"  # Where an accelerator's plug-in is installed, too.
jax.config.update("jax_platforms", "cpu")
cpu.keep_barriers()  # As every entry point does.
jax.config.update("jax_num_cpu_devices", 4)
hypothesis.settings.register_profile("busy", deadline=None)  # A machine may be as slow as it likes.
hypothesis.settings.load_profile("busy")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Files that take longest, so that none of them is alone at the end: each is tested by one process.
LONGEST = (
    "training/test_loop.py",
    "end_to_end/test_processes.py",
    "experiments/test_cli.py",
    "experiments/test_sweep.py",
    "training/test_steps.py",
    "analysis/test_diagnostics.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]):
    order = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session", autouse=True)
def _compiled_programs(tmp_path_factory: pytest.TempPathFactory):
    """One cache for this session and the processes it starts; none of the user's files."""
    cache = str(tmp_path_factory.mktemp("xla"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def varied_folder(tmp_path_factory):
    """Where the set of `tests/varied.py` is prepared."""
    from tests import varied

    folder = str(tmp_path_factory.mktemp("varied"))
    varied.prepare(folder)
    return folder


@pytest.fixture
def one_worker(monkeypatch):
    """Reads images in one process, which starts sooner; tests/data/test_stream.py tests several."""
    monkeypatch.setenv(cpu.WORKERS, "1")


@pytest.fixture(scope="session")
def _storage():
    """A server, for this process and those it starts."""
    import fsspec

    from tests import buckets

    with buckets.serve() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("runs")
        yield


@pytest.fixture
def bucket(_storage):
    """A folder in a bucket, of which there is nothing yet."""
    from resnet_flax.storage import filesystem

    return filesystem.path(f"s3://runs/{uuid.uuid4().hex}")


@pytest.fixture(params=["disk", "bucket"])
def anywhere(request):
    """A folder on a disk, and one in a bucket."""
    return request.getfixturevalue({"disk": "tmp_path"}.get(request.param, request.param))


@pytest.fixture
def tiny_config():
    """24 steps of an 8-layer net on 96 digits: seconds."""
    from configs import digits

    config = digits.get_config("resnet8")
    config.steps = 24
    config.log_every = 4
    config.eval_every = 12
    config.checkpoint_every = 8
    config.steps_per_dispatch = 2
    config.model.widths = (4, 8, 8)
    config.optim.boundaries = (12,)
    config.data.train_split = "train[:92]"  # Not a multiple of the batch.
    config.data.test_split = "test[:37]"  # Not a multiple of the devices.
    config.data.batch_size = 16
    config.data.eval_batch_size = 32
    config.data.pad = 1
    config.data.flip = True
    return config.to_dict()
