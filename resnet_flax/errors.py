"""Exceptions whose message is for the user: commands print it as one line, without a traceback."""

import sys

GOES_ON = "Everything saved before is safe. Give the same command again to go on."


class ExplainedError(Exception):
    """An error whose message says in one line what came, what is accepted, and a way out."""

    exit_status = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UserError(ExplainedError, ValueError):
    """A wrong config, flag, folder or data set."""

    exit_status = 2


class FaultError(ExplainedError, RuntimeError):
    """A fault during a run, such as a full disk, a vanished folder or a lost lock."""

    exit_status = 1


class TryAgainError(ExplainedError, RuntimeError):
    """A temporary obstacle, such as another process that is working in the folder."""

    exit_status = 75


def summary(error: BaseException) -> str:
    """The first line of an error, with its type unless it is an ExplainedError."""
    if isinstance(error, ExplainedError):
        return str(error)
    return printable(f"{type(error).__name__}: {error}".splitlines()[0])


def printable(text: str) -> str:
    """Makes text safe for one line of a terminal: it cannot move the cursor or reorder text."""
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def complain(line: str) -> None:
    """Prints a line on stderr."""
    print(printable(line), file=sys.stderr)
