"""Errors that a user can fix."""


class UserError(ValueError):
    """An error that the user can fix; the message is one sentence with the problem and the solution.

    Commands print it without a traceback. Every other exception is a bug, here or in a library, and keeps its
    traceback.
    """


class SettingError(UserError):
    """An invalid value, refused by the part that is built with it.

    The sentence begins with the invalid parameter, as in ``bev_window=4: must be odd``, if there is a single one;
    :mod:`cmt_aqr.runs.configuration` puts the configuration's key in front.
    """


def sentence(error: BaseException) -> str:
    """An exception on one line, with its type unless it is meant for users."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) and text else f"{type(error).__name__}: {text}"
