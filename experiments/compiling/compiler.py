"""Compiles the training steps of a config for chips that are described, not present.

`programs.py` starts it in a process of its own, with the environment that the compilers need. It
takes a line of JSON on stdin, and ends with stdin. It prints lines of JSON: when lowering ends,
and when compilation ends. XLA writes the program into the folder that XLA_FLAGS names.
"""

import json
import os
import sys
import threading
import time
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies

from experiments.compiling import chips
from resnet_flax.config import RunConfig, parse
from resnet_flax.errors import ExplainedError, summary
from resnet_flax.runtime.parallel import Devices
from resnet_flax.training import build
from resnet_flax.training.lowering import lower_training


def main() -> None:
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = parse(given["config"], RunConfig)
    described = chips.topology(given["topology"]).description()
    try:
        devices = topologies.get_topology_desc(**described).devices
        start = time.perf_counter()
        program = build.describe(config, Devices(config.parallel, devices))
        lowered = lower_training(program)
        _say(lower_s=time.perf_counter() - start, chips=len(devices), packages=_versions())
        start = time.perf_counter()
        compiled = lowered.compile()
        _say(compile_s=time.perf_counter() - start)
        if given["full"]:
            _say(text=compiled.as_text())
    except ExplainedError as error:
        _say(error=str(error), status=error.exit_status)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        _say(error=str(error), summary=summary(error), status=1)


def _end_with_parent() -> None:
    """Ends this process when the one that started it has ended, however it ended."""
    sys.stdin.read()
    os._exit(1)


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {name: found[name] for name in names if name in found}


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
