"""The part that all commands share: flags, error messages, exit status, set-up of JAX."""

import ast
import functools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from absl import app, flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser
from rich.console import Console

from experiments import flag_errors
from resnet_flax.errors import ExplainedError, UserError, complain
from resnet_flax.runtime import output, process
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.recipe import flat
from resnet_flax.storage.records import State

EXIT_STATUS: dict[State, int] = {"finished": 0, "preempted": 75}
FAILURE = 1
USAGE = UserError.exit_status


PEERS = ("coordinator", "num_processes", "process_id", "heartbeat_seconds")
HELP = {"--help", "-h", "-help", "--h", "--helpshort"}


class _Tuple(flags.ArgumentParser[tuple[Any, ...]]):
    """A flag for a tuple. If it is given twice, the last one counts, as for any other field.

    ml_collections joins all of them. It does so only for its own parser class.
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
    """Parses the flags, calls `main` with them and exits with the status it returns (None: 0).

    - `config`: the kind of config that --config=FILE.py:ARGUMENT takes. --config.FIELD=VALUE
      changes a field. With `either`, --config is optional. A sweep's config also takes --vary.
    - `workdir`: the help text of --workdir; empty: the command has no such flag.
    - `processes`: adds --coordinator and the other flags for several processes.
    - `data_dir`: adds --data_dir. A run's folder does not say where the run's data lies.

    If a flag, config or folder cannot be used, prints one line on stderr and exits with status 2.
    """
    if config != "none":
        config_flags.DEFINE_config_file("config", help_string="FILE.py:ARGUMENT, see configs/.")
    if config in ("sweep", "either"):
        flags.DEFINE_multi_string(
            "vary", [], "A field of the runs and its values: --vary=optim.lr=0.1,0.01."
        )
    if workdir:
        flags.DEFINE_string("workdir", None, workdir, required=True)
    if processes:
        flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
        flags.DEFINE_integer(
            "num_processes", None, "How many processes train together.", lower_bound=1
        )
        flags.DEFINE_integer(
            "process_id", None, "The number of this process, from 0.", lower_bound=0
        )
        flags.DEFINE_integer(
            "heartbeat_seconds",
            30,
            "A process that is silent for this long is lost.",
            lower_bound=1,
        )
    if data_dir:
        meaning = "The folder of prepared data sets; by default TFDS_DATA_DIR, else TFDS's folder."
        flags.DEFINE_string("data_dir", "", meaning)
    own = {"config": config != "none", "vary": config in ("sweep", "either")}
    own |= {"workdir": bool(workdir), "data_dir": data_dir} | dict.fromkeys(PEERS, processes)
    for name in (name for name, is_there in own.items() if is_there):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])  # --help lists it.
    output.keep_going()
    process.set_up()
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
    except OSError as error:  # A full disk, or a folder of somebody else.
        if not (error.filename and error.strerror):
            raise
        return _complain(f"Cannot use {error.filename}: {error.strerror}.", FAILURE)


def _complain(line: str, status: int) -> int:
    complain(f"{Path(sys.argv[0]).stem}: {line}")
    return status


def run_folder(args: flags.FlagValues) -> AnyPath:
    """The folder of --workdir, for a run or still new. Raises UserError for a sweep's folder."""
    folder = filesystem.path(args.workdir)
    if not filesystem.exists(folder / "sweep.json") or filesystem.exists(folder / "config.json"):
        return folder
    from resnet_flax.storage.sweep_folder import (
        SweepFolder,  # It imports pandas. Training does not need it and starts sooner.
    )

    rest = [f"--workdir={folder / next(iter(SweepFolder(folder)))}"]
    if data_dir := getattr(args, "data_dir", ""):
        rest.append(f"--data_dir={data_dir}")
    raise UserError(
        f"Expected a run's folder, got a sweep's folder: {folder}. Choose another folder. To score"
        f" a run of this sweep: {command('evaluate', rest)}"
    )


def sweep_folder(args: flags.FlagValues) -> AnyPath:
    """The folder of --workdir, for a sweep or still new. Raises UserError for a run's folder."""
    folder = filesystem.path(args.workdir)
    if not filesystem.exists(folder / "config.json") or filesystem.exists(folder / "sweep.json"):
        return folder
    raise UserError(
        f"Expected a sweep's folder, got a run's folder: {folder}. Choose another folder. To report"
        f" on this run: {command('report', [f'--workdir={folder}'])}"
    )


def sweep_config(args: flags.FlagValues) -> dict[str, Any]:
    """The fields of the sweep's config: those of --config, and --vary."""
    config: dict[str, Any] = args.config.to_dict()
    given: dict[str, Any] = {}  # By --vary.
    for field, values in map(_varied, args.vary):
        if field in given:
            raise UserError(
                f"Expected one --vary for each field, got two for {field}. Give"
                f" --vary={field}=VALUE,VALUE."
            )
        given[field] = values
    if given:
        config["vary"] = flat(dict(config.get("vary", {}))) | given
    if "kinds" in config:  # Some commands also take a run's config.
        from experiments.sweeping import run_flags  # It imports the networks.

        run_flags.check(config, config_flags.get_override_values(args["config"]))
    return config


def _varied(given: str) -> tuple[str, tuple[Any, ...]]:
    """`optim.lr=0.1,0.01` -> ("optim.lr", (0.1, 0.01))."""
    field, equals, values = (part.strip() for part in given.partition("="))
    if not (field and equals and values):
        raise UserError(f"Expected --vary=FIELD=VALUE,VALUE,..., got --vary={given}.")
    try:
        found = ast.literal_eval(f"({values},)")
        json.dumps(found)  # A set, for instance, is no value of a field.
        return field, found
    except (SyntaxError, TypeError, ValueError):  # Text without quotes.
        return field, tuple(value.strip() for value in values.split(","))


def config_file(args: flags.FlagValues) -> str:
    """The path of the config's file, without the argument after the colon."""
    return str(config_flags.get_config_filename(args["config"])).partition(":")[0]


def config_as_given(args: flags.FlagValues) -> list[str]:
    """Returns --config, its overrides and --vary as arguments for another command."""
    flag = args["config"]
    overrides = config_flags.get_override_values(flag)
    given = [f"--config.{field}={value}" for field, value in overrides.items()]
    given += [f"--vary={one}" for one in (args.vary if "vary" in args else ())]
    return [f"--config={config_flags.get_config_filename(flag)}", *given]


def _check_config(config: str) -> None:
    """Raises an error if --config is missing or of another kind; it names the right command."""
    given = dict(flags.FLAGS.config or {})
    if not given:
        raise flags.IllegalFlagValueError(
            f"Expected --config=FILE.py:ARGUMENT; see configs/. {flag_errors.example()}"
        )
    found, taker = ("sweep", "sweep") if "kinds" in given else ("run", "train")
    if found != config:
        rest = [one for one in config_as_given(flags.FLAGS) if not one.startswith("--vary=")]
        rest += [f"--workdir={flags.FLAGS.workdir if 'workdir' in flags.FLAGS else 'FOLDER'}"]
        varies = "vary" in flags.FLAGS and flags.FLAGS.vary
        hint = " To vary a field, give a sweep's, such as configs/degradation.py:digits."
        raise flags.IllegalFlagValueError(
            f"Expected a {config}'s --config, got a {found}'s --config.{hint if varies else ''}"
            f" This command takes it: {command(taker, rest)}"
        )


def command(module: str, arguments: list[str]) -> str:
    """A command that works when it is typed in the current directory."""
    running, here = Path(sys.executable), Path.cwd()
    inside = running.is_relative_to(here / ".venv")
    python = str(running.relative_to(here)) if inside else "python"
    return shlex.join([python, "-m", f"experiments.{module}", *arguments])


def console() -> Console:
    """A console for tables: it cuts no cell, also in a log. A narrow terminal breaks the lines."""
    return Console(highlight=False, soft_wrap=True, width=max(Console().width, 1_000))


def shown(path: AnyPath) -> str:
    """A path as it can be typed in the current directory."""
    here = Path.cwd()
    inside = isinstance(path, Path) and path.is_relative_to(here)
    return str(path.relative_to(here)) if inside else str(path)


def _parse_flags(argv: list[str], config: str) -> list[str]:
    """Parses flags as absl does. Reports any error in one line, also one in the config's file."""
    argv = [_with_underscores(arg) for arg in argv]
    if HELP & set(argv):
        app.usage(shorthelp=True, writeto_stdout=True)
        print("--config.FIELD=VALUE sets a field." if config != "none" else "", end="\n\n")
        sys.exit(0)
    try:
        positional = flags.FLAGS(argv)
        if config in ("run", "sweep"):
            _check_config(config)
        if "workdir" in flags.FLAGS:
            if not flags.FLAGS.workdir:
                raise flags.IllegalFlagValueError("Expected --workdir=FOLDER, got an empty name.")
            flags.FLAGS["workdir"].value = str(filesystem.path(flags.FLAGS.workdir))
    except Exception as error:  # A config's file is code: it may raise anything.
        line = flag_errors.explain(argv, error, is_sweep=config == "sweep")
        sys.exit(_complain(line, USAGE))
    if len(positional) > 1:
        sys.exit(_complain(f"Unexpected arguments: {' '.join(positional[1:])}.", USAGE))
    return positional


def _with_underscores(arg: str) -> str:
    """Turns --all-steps into --all_steps. Leaves values and ['names'] as they are."""
    name, equals, value = arg.partition("=")
    plain, bracket, rest = name[2:].partition("[")
    flag = plain.replace("-", "_") + bracket + rest
    is_ours = arg.startswith("--") and flag.partition(".")[0].removeprefix("no") in _known_flags()
    return f"--{flag}{equals}{value}" if is_ours else arg


def _known_flags() -> set[str]:
    return {name.removeprefix("no") for name in flags.FLAGS}
