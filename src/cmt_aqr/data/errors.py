"""The error about unusable data."""

from cmt_aqr.errors import UserError


class DataError(UserError):
    """The data on disk, or a request for them, cannot be used. The message names the file or key to correct."""
