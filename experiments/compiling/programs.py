"""The programs of a config, each compiled in a process of its own, and what XLA made of them."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.compiling import identity
from experiments.compiling.chips import Topology
from resnet_flax.config import RunConfig
from resnet_flax.errors import FaultError, UserError, printable
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath

# Written last, once layouts, memory and collectives are decided. Code generation follows.
PLANNED = "*after_optimizations_after_buffer_assignment.txt"
_POLL = 0.2  # Seconds.
# What libtpu asks of a machine that has no TPU.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Otherwise it leaves a lock in the temporary folder.
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
_PACKAGES = {"tpu": "libtpu", "cuda": "jax_cuda13_plugin"}


class Compiled(NamedTuple):
    """What compilation gave. Without `text`, the program was refused."""

    facts: dict[str, Any]
    """What `compiler.py` said: lower_s, chips, packages, compile_s, error."""
    text: str
    """The optimised HLO."""
    assignment: str
    """XLA's buffer assignment."""


def distinct(configs: Mapping[str, RunConfig]) -> dict[str, RunConfig]:
    """The first config of each program, by name."""
    found: dict[str, str] = {}
    for name, config in configs.items():
        found.setdefault(repr(identity.of(config)), name)
    return {name: configs[name] for name in found.values()}


def check_python(python: str, topology: Topology) -> None:
    """Raises UserError if this Python has not the compiler that a topology needs."""
    package = _PACKAGES[topology.chip.platform]
    test = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    with contextlib.suppress(OSError):
        if not subprocess.run([python, "-c", test], check=False).returncode:
            return
    raise UserError(
        f"Expected a Python with {package} for --compiler_python, got {python}. `make compilers`"
        " installs it into .venv-compile."
    )


def compile_steps(
    config: RunConfig, topology: Topology, python: str, timeout: float, *, full: bool
) -> Compiled:
    """Compiles the training steps of a config. Raises FaultError if it takes `timeout` seconds.

    `full`: whether code is generated. Otherwise a TPU's program ends when memory and layout are
    decided. It leaves no file and no process.
    """
    with tempfile.TemporaryDirectory(prefix="resnet_flax_compile_") as folder:
        dump, own = Path(folder, "dump"), Path(folder, "tmp")
        own.mkdir()
        flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
        folders = {"XLA_FLAGS": flags, "TMPDIR": str(own), "TPU_LOG_DIR": str(own)}
        environment = os.environ | _ENVIRONMENT | folders
        output = Path(folder, "output")
        with output.open("w") as file, (output.parent / "errors").open("w") as errors:
            process = subprocess.Popen(
                [python, "-m", "experiments.compiling.compiler"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=errors,
                env=environment,
                text=True,
                start_new_session=True,
            )
            try:
                return _followed(process, config, topology, Path(folder), timeout, full=full)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()  # Also closes its pipe.


def _followed(
    process: "subprocess.Popen[str]",
    config: RunConfig,
    topology: Topology,
    folder: Path,
    timeout: float,
    *,
    full: bool,
) -> Compiled:
    stops_early = topology.chip.platform == "tpu" and not full
    given = {"config": config.model_dump(mode="json"), "topology": topology.name, "full": full}
    assert process.stdin
    with contextlib.suppress(
        BrokenPipeError
    ):  # It stays open: the compiler ends with this process.
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.flush()
    end, lowered = time.monotonic() + timeout, 0.0
    while process.poll() is None:
        if time.monotonic() > end:
            raise FaultError(
                f"Compilation for {topology.name} did not end in {timeout:g} s. Give a larger"
                " --timeout, or a network with --config.model.scan=on."
            )
        lowered = lowered or (time.monotonic() if "lower_s" in _facts(folder) else 0.0)
        if stops_early and _is_planned(folder):
            facts = {"compile_s": time.monotonic() - lowered} | _facts(folder)
            return _read(folder, facts)
        time.sleep(_POLL)
    facts = _facts(folder)
    if "error" not in facts and "compile_s" not in facts:
        last = (folder / "errors").read_text().strip().splitlines()[-1:]
        raise FaultError(
            f"The compiler for {topology.name} ended with status {process.returncode}:"
            f" {printable(''.join(last)) or 'it said nothing'}."
        )
    return _read(folder, facts)


def _facts(folder: Path) -> dict[str, Any]:
    lines = (folder / "output").read_text().split("\n")[:-1]  # The last one may be incomplete.
    found: dict[str, Any] = {}
    for line in lines:
        found |= json.loads(line)
    return found


def _is_planned(folder: Path) -> bool:
    files = list((folder / "dump").glob(PLANNED))
    return bool(files) and _tail(files[0]).rstrip().endswith("}")


def _tail(file: Path) -> str:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 16))
        return opened.read().decode(errors="replace")


def _read(folder: Path, facts: dict[str, Any]) -> Compiled:
    dump = folder / "dump"
    texts = [*dump.glob(PLANNED), *dump.glob("*gpu_after_optimizations.txt")]
    plans = list(dump.glob("*after_optimizations-buffer-assignment.txt"))
    text = facts.pop("text", "") or (texts[0].read_text() if texts else "")
    return Compiled(facts, text, plans[0].read_text() if plans else "")


def keep(compiled: Compiled, folder: AnyPath, name: str) -> None:
    """Writes the program's text and its buffer assignment into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in (("hlo.txt", compiled.text), ("memory.txt", compiled.assignment)):
        if text:
            filesystem.write_text(folder / f"{name}.{ending}", text)
