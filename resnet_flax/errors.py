"""The one exception that means: what the user gave cannot be used."""


class UserError(ValueError):
    """A wrong config, flag, folder or data set.

    Its message is one line that says what came, what is accepted and the way out; the entry points
    print it without a traceback and exit with status 2.
    """


def summary(error: BaseException) -> str:
    """The first line of an error, with its type."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
