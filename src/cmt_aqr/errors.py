"""Failures a user can put right."""


class UserError(ValueError):
    """Something the user can put right; the message is one sentence that says what and how.

    Commands print it without a traceback. Every other exception is a bug, ours or a library's, and keeps its
    traceback.
    """


class SettingError(UserError):
    """A value that cannot be, refused by whoever is built with it.

    The sentence begins with the parameter that is to blame, as in ``bev_window=4: must be odd``, or where none is,
    with no name: :mod:`cmt_aqr.runs.configuration` then puts the configuration's key in front.
    """


def sentence(error: BaseException) -> str:
    """An exception on one line, with its type unless it was written for users."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) and text else f"{type(error).__name__}: {text}"
