"""Failures a user can put right."""


class UserError(ValueError):
    """Something the user can put right; the message is one sentence that says what and how.

    Commands print it without a traceback.
    """
