"""A host for the conformance suite whose files are those of a directory of this machine."""

from __future__ import annotations

from pathlib import Path

from uvm.testing.backends import Host


class DirectoryHost(Host):
    """Control of the files of a host.

    :param directory: the place of its files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path_of(self, name: str) -> str:
        """Return the path that a file of that name would have."""
        return str(self.directory / name)

    def image(self, suffix: str, size_bytes: int) -> bytes | None:
        """Return an image of a disk, as a name with that suffix says; None if it says nothing."""

    def put_file(self, name: str, *, size_bytes: int = 1 << 20, content: bytes = b"") -> str:
        """Put a file on the host; those of disks are what their names say."""
        path = self.directory / name
        made = None if content else self.image(path.suffix, size_bytes)
        path.write_bytes(content.ljust(size_bytes, b"\0") if made is None else made)
        return str(path)

    def put_directory(self, name: str) -> str:
        """Make a directory on the host, which the hypervisor may use whatever its user is."""
        (self.directory / name).mkdir(exist_ok=True)
        (self.directory / name).chmod(0o777)
        return self.path_of(name)

    def put_link(self, name: str, target: str) -> str:
        """Put a link on the host."""
        path = self.directory / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return str(path)
