"""The files of the fake guest, in memory, and the programs that are used on them. Containers share them."""

from __future__ import annotations

import io
import ntpath
import posixpath
import stat
from collections.abc import Iterator
from typing import Final, Literal

from attrs import define, evolve, field

from uvm._names import GuestOS
from uvm._repr import showing

#: When everything of it was made.
_TIME: Final = 1_704_067_200


@define
class Node:
    """A file, a directory, or a link.

    :ivar content: of a file.
    :ivar target: of a link.
    """

    kind: Literal["file", "directory", "link"]
    content: bytes = b""
    target: str = ""
    mode: int = 0o755
    modified: int = _TIME


@showing("nodes")
@define(eq=False, repr=False)
class GuestFileSystem:
    """The files of a guest. Paths are absolute, and those of its system; Windows ignores case.

    :ivar nodes: what there is, by path.
    """

    os: GuestOS
    nodes: dict[str, Node] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for path in ("/", "/etc", "/root", "/tmp", "/var") if self.os == "linux" else ("C:\\", "C:\\Windows"):
            self.nodes.setdefault(path, Node("directory"))

    def copy(self) -> GuestFileSystem:
        """Return the same files of another guest."""
        return GuestFileSystem(self.os, {path: evolve(node) for path, node in self.nodes.items()})

    def join(self, directory: str, name: str) -> str:
        """Return the path of a name in a directory."""
        if self.os == "windows":
            return ntpath.normpath(ntpath.join(directory, name))
        return posixpath.normpath(posixpath.join(directory, name))

    def split(self, path: str) -> tuple[str, str]:
        """Return the directory and the name of a path."""
        return ntpath.split(path) if self.os == "windows" else posixpath.split(path)

    def find(self, path: str, *, follow: bool = False) -> str | None:
        """Return how the path is spelled of what is there; None if nothing is."""
        path = self.join(path, "")
        if self.os == "windows":
            path = next((each for each in self.nodes if each.lower() == path.lower()), path)
        for _ in range(8):
            node = self.nodes.get(path)
            if node is None:
                return None
            if node.kind != "link" or not follow:
                return path
            path = self.join(self.split(path)[0], node.target)
        return None

    def children(self, path: str) -> Iterator[tuple[str, str, Node]]:
        """Yield name, path and node of what is in a directory."""
        for each, node in sorted(self.nodes.items()):
            directory, name = self.split(each)
            if directory == path and name:
                yield name, each, node

    def under(self, path: str) -> list[str]:
        """Return a path and all that is under it."""
        found = [path]
        for _, each, _ in self.children(path):
            found += self.under(each)
        return found

    def write(self, path: str, node: Node) -> str:
        """Put something at a path; return what is wrong, if anything is."""
        there = self.find(path)
        directory = self.find(self.split(self.join(path, ""))[0], follow=True)
        if directory is None or self.nodes[directory].kind != "directory":
            return "No such file or directory"
        if there is not None and self.nodes[there].kind == "directory":
            return "" if node.kind == "directory" else "Is a directory"
        self.nodes[there or self.join(directory, self.split(path)[1])] = node
        return ""

    def remove(self, path: str) -> None:
        """Remove what is at a path, and under it."""
        for each in self.under(path):
            del self.nodes[each]

    def archive(self, directory: str, name: str, *, follow: bool) -> bytes:
        """Return the archive of a name in a directory; FileNotFoundError if nothing is there."""
        # It is for those that copy files alone.
        import tarfile

        held = io.BytesIO()
        form = tarfile.PAX_FORMAT if self.os == "windows" else tarfile.GNU_FORMAT
        at = self.find(self.join(directory, name), follow=follow)
        if at is None:
            raise FileNotFoundError
        with tarfile.open(fileobj=held, mode="w", format=form) as archive:
            for path in self.under(at):
                rest = path[len(at) :].strip("\\/").replace("\\", "/")
                info = tarfile.TarInfo(posixpath.join(name, rest) if rest else name)
                node = self.nodes[path]
                info.type = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}[
                    node.kind
                ]
                info.size, info.mode, info.linkname = len(node.content), node.mode, node.target
                info.mtime = node.modified
                archive.addfile(info, io.BytesIO(node.content))
        return held.getvalue()

    def unpack(self, directory: str, data: bytes) -> str:
        """Unpack an archive in a directory; return what is wrong, if anything is."""
        import tarfile

        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for info in archive:
                    file = archive.extractfile(info) if info.isreg() else None
                    content = file.read() if file else b""
                    kind: Literal["file", "directory", "link"] = (
                        "directory" if info.isdir() else "link" if info.issym() else "file"
                    )
                    node = Node(kind, content, info.linkname, info.mode, int(info.mtime))
                    name = info.name.replace("/", "\\") if self.os == "windows" else info.name
                    if problem := self.write(self.join(directory, name), node):
                        return f"{info.name}: {problem}"
        except tarfile.TarError as error:
            return str(error)
        return ""

    def stated(self, path: str, spelled: str) -> str:
        """Return what ``stat`` says of a node, in the format that the library asks for."""
        node = self.nodes[path]
        types = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "link": stat.S_IFLNK}
        size = len(node.content or node.target)
        return f"{types[node.kind] | node.mode:x} {size} {node.modified} {spelled}//\n"
