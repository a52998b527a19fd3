"""What every entry point does around its one call: flags, exit status, how JAX is set up."""

import functools
import itertools
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from absl import app, flags, logging
from ml_collections import config_flags

from resnet_flax import cpu, disk
from resnet_flax.errors import ExplainedError, UserError, complain
from resnet_flax.records import State

EXIT_STATUS: dict[State, int] = {"finished": 0, "preempted": 75}
FAILURE = 1
USAGE = UserError.exit_status


def run(
    main: Callable[[flags.FlagValues], int | None],
    *,
    config: bool | Literal["optional"],
    workdir: str = "",
    processes: bool = False,
) -> None:
    """Parses the flags, calls `main` with them, exits with what it returns (None: 0).

    - `config`: whether there is --config=FILE.py:ARGUMENT, and --config.FIELD=VALUE for its fields,
      or may be.
    - `workdir`: what --workdir means, if there is one.
    - `processes`: whether several may do it together, with --coordinator and so on.

    A flag, config or folder that cannot be used is one line on stderr and exit status 2.
    """
    if config:
        config_flags.DEFINE_config_file("config", help_string="FILE.py:ARGUMENT, see configs/.")
    if workdir:
        flags.DEFINE_string("workdir", None, workdir, required=True)
    if processes:
        flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
        flags.DEFINE_integer("num_processes", None, "How many train together.", lower_bound=1)
        flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
        flags.DEFINE_integer(
            "heartbeat_seconds", 30, "A process silent for so long is lost.", lower_bound=1
        )
    set_up()
    try:
        app.run(
            lambda _: _exit_status(main),
            flags_parser=functools.partial(_parse_flags, needs_config=config is True),
        )
    except KeyboardInterrupt:
        sys.exit(_complain("Interrupted.", 130))


def _exit_status(main: Callable[[flags.FlagValues], int | None]) -> int:
    try:
        return main(flags.FLAGS) or 0
    except ExplainedError as error:
        return _complain(str(error), error.exit_status)


def _complain(line: str, status: int) -> int:
    complain(f"{Path(sys.argv[0]).stem}: {line}")
    return status


def _parse_flags(argv: list[str], needs_config: bool) -> list[str]:
    """absl's, but what is wrong is said in one line, also where the config's file raises it."""
    argv = [_with_underscores(arg) for arg in argv]
    try:
        positional = flags.FLAGS(argv)
        if needs_config and not dict(flags.FLAGS.config or {}):
            raise flags.IllegalFlagValueError("Expected --config=FILE.py:ARGUMENT; see configs/.")
        if "workdir" in flags.FLAGS:
            if not flags.FLAGS.workdir:
                raise flags.IllegalFlagValueError("Expected --workdir=FOLDER, got an empty name.")
            flags.FLAGS.workdir = str(disk.path(flags.FLAGS.workdir))
    except Exception as error:  # A config's file is code: it may raise anything.
        sys.exit(_complain(_unknown_field(argv) or _last_line(error), USAGE))
    if len(positional) > 1:
        sys.exit(_complain(f"Unexpected arguments: {' '.join(positional[1:])}.", USAGE))
    return positional


def _with_underscores(arg: str) -> str:
    """--all-steps as --all_steps; the value is left as it is."""
    name, equals, value = arg.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if arg.startswith("--") else arg


def _last_line(error: Exception) -> str:
    """Of an error that may quote a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("ValueError: ") if lines else repr(error)


def _unknown_field(argv: list[str]) -> str:
    """What to say of the first flag that sets a field its config lacks; "" if none does."""
    for flag in (arg for arg in argv if arg.startswith("--")):
        config, *fields = flag[2:].partition("=")[0].split(".")
        section = _load_config(argv, config) if fields else None
        for name in fields if section is not None else ():
            if name not in getattr(section, "keys", list)():
                accepted = ", ".join(getattr(section, "keys", list)()) or "no field below it"
                return f"Unknown config field in {flag}; accepted: {accepted}."
            section = section[name]
    return ""


def _load_config(argv: list[str], name: str) -> Any:
    """What the file of --NAME=FILE.py:ARGUMENT gives; None if it cannot be had."""
    given = [arg.partition("=")[2] for arg in argv if arg.startswith(f"--{name}=")]
    given += [value for arg, value in itertools.pairwise(argv) if arg == f"--{name}"]
    file, _, argument = "".join(given[:1]).partition(":")
    try:
        return runpy.run_path(file)["get_config"](*filter(None, [argument]))
    except Exception:  # That is what is wrong, then, and said by the caller.
        return None


def set_up() -> None:
    """What every process begins with, before the first use of a device.

    Compiled programs are kept, so that the second run of a network starts in seconds;
    JAX_COMPILATION_CACHE_DIR moves the folder.
    """
    # What matters is raised; --verbosity=0 shows what the libraries have to say besides.
    logging.set_verbosity(logging.FATAL)
    cpu.keep_barriers()
    jax = sys.modules.get("jax")
    if jax is None:  # A report needs none.
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "resnet_flax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
