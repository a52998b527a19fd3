"""The exceptions whose message is for the user: one line, printed without a traceback."""

GOES_ON = "What was saved before stands; the same command goes on from there."


class ExplainedError(Exception):
    """Its message is one line that says what came, what is accepted and the way out."""

    exit_status = 1


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
    text = str(error) if isinstance(error, ExplainedError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0]
