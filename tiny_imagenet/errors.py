"""The error for what a user can fix."""

import errno

# Errors of the operating system for a full disk.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """A mistake that the user can fix; the message is one line that says how."""
