"""The error for what a user can fix."""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """A mistake that the user can fix; the message is one line that says how."""
