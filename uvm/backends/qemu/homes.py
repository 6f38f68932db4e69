"""The directories in which a user keeps what programs make: those of the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path

from uvm.errors import NotSupportedError


def user_directory(variable: str, below_home: str) -> Path:
    """Return such a directory.

    :param variable: the environment variable that names it; relative paths are ignored, as is specified.
    :param below_home: where it is in the user's home directory otherwise.
    :raises NotSupportedError: the user has no home directory.
    """
    named = os.environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named)
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise NotSupportedError(
            f"user {os.getuid()} has no home directory ($HOME is not set, and there is no entry in "
            f"/etc/passwd); nothing was started; name a directory: {variable}"
        )
    return Path(home, below_home)
