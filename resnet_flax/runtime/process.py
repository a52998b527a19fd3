"""Sets up a process that trains or measures: log level, barriers, compiled programs on disk."""

import contextlib
import os
import sys
from pathlib import Path

from absl import logging

from resnet_flax.runtime import cpu


def set_up() -> None:
    """Sets up a process. Every process calls it before the first use of a device.

    Compiled programs are kept on disk, so the second run of a network starts in seconds.
    JAX_COMPILATION_CACHE_DIR names another folder for them.
    """
    # Problems are raised as errors. --verbosity=0 also shows what the libraries log.
    logging.set_verbosity(logging.FATAL)
    cpu.keep_barriers()
    jax = sys.modules.get("jax")
    if jax is None:  # Some commands, such as report, do not use jax.
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # Without a home folder that can be written to, programs are not kept.
        with contextlib.suppress(RuntimeError, OSError):
            cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
            folder = cache / "resnet_flax" / "xla"
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
