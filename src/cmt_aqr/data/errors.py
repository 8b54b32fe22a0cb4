"""What is wrong with the data, in one sentence."""

from cmt_aqr.errors import UserError


class DataError(UserError):
    """The data on disk, or the request for it, cannot be used. The message names the file or key to mend."""
