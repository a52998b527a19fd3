"""What every entry point does around its one call: flags, exit status, how JAX is set up."""

import contextlib
import functools
import itertools
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from absl import app, flags, logging
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from resnet_flax.errors import ExplainedError, UserError, complain
from resnet_flax.runtime import cpu, output
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.records import State

EXIT_STATUS: dict[State, int] = {"finished": 0, "preempted": 75}
FAILURE = 1
USAGE = UserError.exit_status


class _Tuple(flags.ArgumentParser[tuple[Any, ...]]):
    """A tuple of which the last on the command line counts, as of any other field.

    ml_collections would join all that are given; that depends on the class of its own parser.
    """

    def parse(self, argument: Any) -> tuple[Any, ...]:
        return tuple_parser.TupleParser().parse(argument)

    def flag_type(self) -> str:
        return "tuple"


config_flags.register_flag_parser_for_type(tuple, _Tuple())


def run(
    main: Callable[[flags.FlagValues], int | None],
    *,
    config: Literal["run", "sweep", "either", "none"],
    workdir: str = "",
    processes: bool = False,
    data_dir: bool = False,
) -> None:
    """Parses the flags, calls `main` with them, exits with what it returns (None: 0).

    - `config`: whose --config=FILE.py:ARGUMENT there is, and --config.FIELD=VALUE for its fields;
      `either` need not be given.
    - `workdir`: what --workdir means, if there is one.
    - `processes`: whether several may do it together, with --coordinator and so on.
    - `data_dir`: whether it reads the data of a run, whose folder does not say where that lies.

    A flag, config or folder that cannot be used is one line on stderr and exit status 2.
    """
    if config != "none":
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
    if data_dir:
        meaning = "Where the data set was prepared; by default TFDS_DATA_DIR, else TFDS's folder."
        flags.DEFINE_string("data_dir", "", meaning)
    output.keep_going()
    set_up()
    try:
        app.run(
            lambda _: _exit_status(main),
            flags_parser=functools.partial(_parse_flags, config=config),
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


def run_folder(args: flags.FlagValues) -> AnyPath:
    """--workdir, a run's or a new one. Raises UserError if it is a sweep's."""
    folder = filesystem.path(args.workdir)
    if not filesystem.exists(folder / "sweep.json") or filesystem.exists(folder / "config.json"):
        return folder
    from resnet_flax.storage.sweep_folder import (
        SweepFolder,  # With pandas, for which training need not wait.
    )

    run = next(iter(SweepFolder(folder)))
    raise UserError(
        f"Expected a run's folder, got a sweep's, {folder}. Choose another; to score one of its"
        f" runs: {_command('evaluate', [f'--workdir={folder / run}'])}"
    )


def sweep_folder(args: flags.FlagValues) -> AnyPath:
    """--workdir, a sweep's or a new one. Raises UserError if it is a run's."""
    folder = filesystem.path(args.workdir)
    if not filesystem.exists(folder / "config.json") or filesystem.exists(folder / "sweep.json"):
        return folder
    if filesystem.exists(folder.parent / "sweep.json"):
        instead = f"for its sweep: {_command('report', [f'--workdir={folder.parent}'])}"
    else:
        instead = f"to score the run: {_command('evaluate', [f'--workdir={folder}'])}"
    raise UserError(f"Expected a sweep's folder, got a run's, {folder}. Choose another; {instead}")


def config_as_given(flag: flags.Flag[Any]) -> list[str]:
    """--config and its overrides, as arguments of another command."""
    overrides = config_flags.get_override_values(flag)
    given = (f"--{flag.name}.{field}={value}" for field, value in overrides.items())
    return [f"--{flag.name}={config_flags.get_config_filename(flag)}", *given]


def _check_config(config: str) -> None:
    """Raises an error, with the command that takes it, if --config is not what is expected."""
    given = dict(flags.FLAGS.config or {})
    if not given:
        raise flags.IllegalFlagValueError("Expected --config=FILE.py:ARGUMENT; see configs/.")
    found, taker = ("sweep", "sweep") if "kinds" in given else ("run", "train")
    if found != config:
        rest = config_as_given(flags.FLAGS["config"])
        rest += [f"--workdir={flags.FLAGS.workdir if 'workdir' in flags.FLAGS else 'FOLDER'}"]
        raise flags.IllegalFlagValueError(
            f"Expected a {config}'s --config, got a {found}'s, which this takes:"
            f" {_command(taker, rest)}"
        )


def _command(module: str, arguments: list[str]) -> str:
    return shlex.join(["python", "-m", f"experiments.{module}", *arguments])


def _parse_flags(argv: list[str], config: str) -> list[str]:
    """absl's, but what is wrong is said in one line, also where the config's file raises it."""
    argv = [_with_underscores(arg) for arg in argv]
    try:
        positional = flags.FLAGS(argv)
        if config in ("run", "sweep"):
            _check_config(config)
        if "workdir" in flags.FLAGS:
            if not flags.FLAGS.workdir:
                raise flags.IllegalFlagValueError("Expected --workdir=FOLDER, got an empty name.")
            flags.FLAGS["workdir"].value = str(filesystem.path(flags.FLAGS.workdir))
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
        section: Any = _load_config(argv, config) if fields else None
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
    try:
        return flags.FLAGS[name].parser.parse("".join(given[:1]))
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
        # A user without a home, or who may not write there, keeps none.
        with contextlib.suppress(RuntimeError, OSError):
            cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
            folder = cache / "resnet_flax" / "xla"
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
