"""The subcommand ``image``: build, list and remove guest images of the qemu backend."""

from __future__ import annotations

import platform
import sys
from argparse import Namespace
from typing import Final

import attrs

from uvm._drawing.blocks import table
from uvm._repr import format_size
from uvm.backends.qemu.guestimage.builder import build
from uvm.backends.qemu.guestimage.cache import Image, default_cache
from uvm.backends.qemu.guestimage.fetch import fetch_kernel
from uvm.backends.qemu.guestimage.selection import ImageOptions
from uvm.cli.terminal import Terminal
from uvm.errors import NotSupportedError

_KEY_DIGITS: Final = 12


def run(terminal: Terminal, given: Namespace) -> int:
    """Carry out a command on guest images.

    :raises NotSupportedError: this is no Linux; or something that an image is made of is missing.
    :raises OptionsError: an option names what is not there.
    """
    if sys.platform != "linux":
        raise NotSupportedError(
            f"guest images are built on Linux, of its own parts, and this is {sys.platform}"
        )
    {"build": _build, "list": _list, "prune": _prune}[given.action](terminal, given)
    return 0


def _build(terminal: Terminal, given: Namespace) -> None:
    # What takes longer is said on the error stream: the output is the result.
    progress = Terminal.of(sys.stderr).write
    names = [field.name for field in attrs.fields(ImageOptions)]
    options = ImageOptions(**{name: getattr(given, name) for name in names if hasattr(given, name)})
    if given.fetch:
        fetched = fetch_kernel(default_cache(), given.machine or platform.machine(), progress)
        options = attrs.evolve(options, kernel=str(next(fetched.glob("boot/vmlinuz-*"))))
    image = build(options, progress)
    terminal.write_text(str(image.directory))
    terminal.write(table(("file", "size"), _files(image), indent=2, right=(1,)))


def _files(image: Image) -> list[tuple[str, str]]:
    return [(name, format_size(each["size"])) for name, each in image.manifest["files"].items()]


def _list(terminal: Terminal, given: Namespace) -> None:
    rows = [
        (
            image.key[:_KEY_DIGITS],
            image.manifest["built"],
            format_size(image.size_bytes),
            image.manifest["selection"]["release"],
            image.manifest["python"],
        )
        for image in default_cache().all()
    ]
    if rows:
        terminal.write(table(("image", "built", "size", "Linux", "Python"), rows, right=(2,)))
    else:
        terminal.write("no guest image was built yet: 'uvm image build', or the first VM, builds one")


def _prune(terminal: Terminal, given: Namespace) -> None:
    cache = default_cache()
    cache.prepare()
    with cache.locked():
        cache.remove_unfinished()
        removed: list[str] = cache.remove_downloads() if given.all else []
        images = cache.all()[0 if given.all else 1 :]
        for image in images:
            done = "removed" if cache.prune(image) else "kept, as VMs or templates use it,"
            terminal.write(f"{done} {image.key[:_KEY_DIGITS]}: {format_size(image.size_bytes)}")
        for name in removed:
            terminal.write(f"removed {name}")
    if not (images or removed):
        terminal.write("there is nothing to remove")
