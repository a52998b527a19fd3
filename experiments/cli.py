"""What every entry point does around its one call: flags, exit status, where JAX keeps programs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from resnet_flax.errors import UserError
from resnet_flax.records import State

EXIT_STATUS: dict[State, int] = {"finished": 0, "preempted": 75}
FAILURE = 1
USAGE = 2


def define_config() -> flags.FlagHolder:
    """--config=FILE.py:ARGUMENT, and --config.FIELD=VALUE for each of its fields."""
    return config_flags.DEFINE_config_file("config", help_string="A file of configs/, see there.")


def define_workdir(meaning: str) -> flags.FlagHolder[str]:
    return flags.DEFINE_string("workdir", None, meaning, required=True)


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags, calls `main`, exits with what it returns (None: 0).

    A flag, config or folder that cannot be used is one line on stderr and exit status 2.
    """
    _keep_compiled_programs()
    try:
        app.run(lambda _: _exit_status(main), flags_parser=_parse_flags)
    except KeyboardInterrupt:
        sys.exit(_complain("Interrupted.", 130))


def _exit_status(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except UserError as error:
        return _complain(str(error), USAGE)


def _complain(line: str, status: int) -> int:
    print(f"{Path(sys.argv[0]).stem}: {line}", file=sys.stderr)
    return status


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's, but what is wrong is said in one line, also where the config's file raises it."""
    logging.set_verbosity(logging.ERROR)  # --verbosity=0 shows what the libraries have to say.
    try:
        positional = flags.FLAGS(argv)
        if "config" in flags.FLAGS and dict(flags.FLAGS.config or {}) == {}:
            raise flags.IllegalFlagValueError("Expected --config=FILE.py:ARGUMENT; see configs/.")
    except AttributeError as error:
        sys.exit(_complain(_unknown_field(argv, str(error).strip("\"'")), USAGE))
    except (flags.Error, KeyError, TypeError, ValueError, OSError) as error:
        last_line = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        sys.exit(_complain(last_line.removeprefix("ValueError: "), USAGE))
    if len(positional) > 1:
        sys.exit(_complain(f"Unexpected arguments: {' '.join(positional[1:])}.", USAGE))
    return positional


def _unknown_field(argv: list[str], field: str) -> str:
    """What to say of the flag that sets a field its config lacks."""
    flag = next((arg for arg in argv if f".{field}" in arg.split("=")[0]), field)
    section = flags.FLAGS["config"].value
    for name in flag.split("=")[0].split(".")[1:]:
        if name not in section:
            return f"Unknown field in {flag}: expected one of {', '.join(section)}."
        section = section[name]
    return f"Unknown field {field}."


def _keep_compiled_programs() -> None:
    """The second run of a network starts in seconds. JAX_COMPILATION_CACHE_DIR moves the folder."""
    if "jax" not in sys.modules:  # A report needs none.
        return
    jax = sys.modules["jax"]
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "resnet_flax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
