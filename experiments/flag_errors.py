"""Explains in one line why a command's flags cannot be read."""

import itertools
import re
import sys
from typing import Any

from absl import flags
from ml_collections.config_flags import config_path


def explain(argv: list[str], error: Exception, *, is_sweep: bool) -> str:
    """The reason for an error in flags, and a way out where there is one.

    `is_sweep`: whether the command takes a sweep's config.
    """
    line = _unknown_field(argv) or _missing_flag(error) or _of_file(error) or _last_line(error)
    return line + (_to_vary(line) if is_sweep else "")


def _missing_flag(error: Exception) -> str:
    """A message about a required flag that was not given; "" if the error is another one."""
    missing = re.match(r"flag --(\w+)=None: Flag --\1 must have a value", str(error))
    return f"Expected --{missing[1]}. {example()}" if missing else ""


def _of_file(error: Exception) -> str:
    """A message about a config's file that is missing, or is none; "" if the error is another."""
    text = str(error)
    if missing := re.search(r"No such file or directory: '(.*?\.py)'", text):
        return (
            f"Expected --config=FILE.py:ARGUMENT, got {missing[1]}, which is missing. {example()}"
        )
    if "has no attribute 'get_config'" in text:
        return "Expected a config's file with a function get_config, got one without it."
    if whole := re.search(r"Type <class 'dict'> of field (\S+) is not supported", text):
        return (
            f"Expected --{whole[1]}.NAME=VALUE: a whole {whole[1]} stands only in a config's file."
        )
    return ""


def example() -> str:
    """The first example in the command's docstring."""
    text = (sys.modules["__main__"].__doc__ or "").replace("\\\n", " ")
    examples = (line for line in text.splitlines() if line.startswith(".venv/bin/python"))
    return f"Example: {' '.join(next(examples, '--help shows one').split())}"


def _to_vary(line: str) -> str:
    """A hint if an error is about several values for one field of the runs; else ""."""
    several = re.match(r"flag --config\.run\.([\w.]+)=[(\[]?([^()]+,[^()]+?)[)\]]?:", line)
    return f". To vary it: --vary={several[1]}={several[2]}" if several else ""


def _last_line(error: Exception) -> str:
    """The last line of an error's message, which may quote a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("ValueError: ") if lines else repr(error)


def _unknown_field(argv: list[str]) -> str:
    """A message about the first flag that sets an unknown config field; "" if there is none."""
    for flag in (arg for arg in argv if arg.startswith("--")):
        option, equals, value = flag.partition("=")
        config, _, path = option[2:].partition(".")
        section: Any = _load_config(argv, config) if path else None
        if section is None:
            continue
        for name in _names(path):
            if isinstance(section, list | tuple) and isinstance(name, int):
                break  # The parser tells what is wrong there.
            if name not in (keys := list(getattr(section, "keys", list)())):
                accepted = ", ".join(map(str, keys)) or "none, it has no fields"
                of_run = flag.replace(f"--{config}.", f"--{config}.run.", 1)
                is_of_run = "run" in keys and name in section["run"]
                hint = f" For all runs of a sweep: {of_run}" if is_of_run else ""
                for key in (key for key in keys if str(key).replace("-", "_") == str(name)):
                    shown = option
                    for written in (f".{name}", f"['{name}']", f"[{name}]"):
                        shown = shown.replace(written, f"[{key!r}]", 1)
                    hint = f' In brackets: "{shown}{equals}{value}"'
                return f"Unknown config field in {flag}; accepted: {accepted}.{hint}"
            section = section[name]
        parts = path.split(".")
        if "[" not in path and any(part.isdecimal() for part in parts):
            shown = "".join(f"['{part}']" if part.isdecimal() else f".{part}" for part in parts)
            return f'Expected a number in brackets: "--{config}{shown}{equals}{value}", got {flag}.'
    return ""


def _names(path: str) -> list[Any]:
    """The names of a field: `kinds['a'].steps` -> ["kinds", "a", "steps"]."""
    try:
        return list(config_path.split(path))
    except (SyntaxError, ValueError):  # A hyphen or a number outside brackets.
        return path.split(".")


def _load_config(argv: list[str], name: str) -> Any:
    """Loads the config of --NAME=FILE.py:ARGUMENT; None if that fails."""
    given = [arg.partition("=")[2] for arg in argv if arg.startswith(f"--{name}=")]
    given += [value for arg, value in itertools.pairwise(argv) if arg == f"--{name}"]
    try:
        return flags.FLAGS[name].parser.parse("".join(given[:1]))
    except Exception:  # The caller reports this error.
        return None
