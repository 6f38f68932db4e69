"""What ``uvm run`` attaches to its VM: disks and shared directories, as the command line names them."""

from __future__ import annotations

import os
from pathlib import PurePosixPath, PureWindowsPath

from attrs import frozen

from uvm.backend import HostInfo

_ACCESS = {":ro": True, ":rw": False}


@frozen
class Attachment:
    """A disk or a directory of the host, and its place in the guest.

    :ivar guest_path: empty for one named after the path: see :meth:`place`.
    """

    path: str
    guest_path: str = ""
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Attachment:
        """Read ``PATH[:GUEST_PATH][:ro]``; a host path may have colons of its own."""
        read_only = _ACCESS.get(text[-3:])
        if read_only is not None:
            text = text[:-3]
        path, colon, guest_path = text.rpartition(":")
        if not (colon and guest_path.startswith("/")):
            path, guest_path = text, ""
        if not path:
            raise ValueError(f"{text!r} names no path of the host")
        return cls(path, guest_path, bool(read_only))

    def on(self, host: HostInfo) -> str:
        """Return the path on a host: if that is this machine, a relative one begins here."""
        return os.path.abspath(self.path) if host.path is os.path else self.path

    def place(self, host: HostInfo) -> str:
        """Return the path in the guest: ``/mnt/NAME`` if none was asked for."""
        if self.guest_path:
            return self.guest_path
        flavour = PureWindowsPath if host.paths == "windows" else PurePosixPath
        return f"/mnt/{flavour(self.on(host)).stem}"
