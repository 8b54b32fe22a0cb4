"""Failures a user can put right."""


class UserError(ValueError):
    """Something the user can put right; the message is one sentence that says what and how.

    Commands print it without a traceback.
    """


def sentence(error: BaseException) -> str:
    """An exception on one line, with its type unless it was written for users."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
