"""The exceptions whose message is for the user: one line, printed without a traceback."""

import sys

GOES_ON = "What was saved before stands; the same command goes on from there."


class ExplainedError(Exception):
    """Its message is one line that says what came, what is accepted and the way out."""

    exit_status = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UserError(ExplainedError, ValueError):
    """A wrong config, flag, folder or data set."""

    exit_status = 2


class FaultError(ExplainedError, RuntimeError):
    """What befell a run: a full disk, a vanished folder, a lost lock."""

    exit_status = 1


class TryAgainError(ExplainedError, RuntimeError):
    """What passes by itself: another process is at work in the folder."""

    exit_status = 75


def summary(error: BaseException) -> str:
    """The first line of an error, with its type unless it explains itself."""
    if isinstance(error, ExplainedError):
        return str(error)
    return printable(f"{type(error).__name__}: {error}".splitlines()[0])


def printable(text: str) -> str:
    """Text for one line of a terminal, which cannot move its cursor or reorder what it shows."""
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def complain(line: str) -> None:
    """Prints a line on stderr."""
    print(printable(line), file=sys.stderr)
