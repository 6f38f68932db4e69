"""Build a guest image, or find the one that was built of the same.

The key of an image is a digest of all that it is made of and of this package. To compute it takes reading all
of that, so what a request came to is noted with what ``stat`` said of each file: while that is the same, and
the request selects the same, the image is the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import anyio.to_thread
from attrs import asdict

from uvm._log import Log
from uvm.backends.qemu.guestimage.cache import Cache, Image, ImageDamagedError, default_cache
from uvm.backends.qemu.guestimage.contents import Contents
from uvm.backends.qemu.guestimage.cpio import CpioWriter
from uvm.backends.qemu.guestimage.gather import gather
from uvm.backends.qemu.guestimage.kernel import KernelError
from uvm.backends.qemu.guestimage.packages import downloaded, owners
from uvm.backends.qemu.guestimage.selection import ImageOptions, Selection, select
from uvm.backends.qemu.guestimage.sources import Sources, unchanged
from uvm.errors import NotSupportedError

_log = Log("uvm")

#: Is called with what is being done, once or a few times, where it takes a second or longer.
Progress = Callable[[str], object]


def _say(what: str) -> None:
    _log.info(None, "%s", what)


async def guest_image(options: ImageOptions, progress: Progress = _say) -> Image:
    """Return a guest image, built if need be, without blocking the event loop; see :func:`build`.

    A caller that is cancelled leaves at once; what was begun is completed, for the next one.
    """
    return await anyio.to_thread.run_sync(partial(build, options, progress), abandon_on_cancel=True)


def build(options: ImageOptions, progress: Progress = _say, images: Cache | None = None) -> Image:
    """Return a guest image, built if need be. Blocks; several threads and processes may ask for the same.

    :param progress: is called from the thread that runs this.
    :param images: where it is kept, instead of in the user's cache.
    :raises OptionsError: what an option names is not there, or of no use.
    :raises NotSupportedError: something is missing on the machine, or damaged; or there is no room.
    """
    images = images or default_cache()
    images.prepare()
    selection = select(options, images.downloads)
    request = _digest([asdict(selection), _builder()])
    if (known := _known(images, request)) is not None:
        return known
    with images.locked():
        # Another may have built it meanwhile.
        if (known := _known(images, request)) is not None:
            return known
        return _build(images, selection, request, progress)


def _known(images: Cache, request: str) -> Image | None:
    noted = images.recall(request)
    if noted is None or not unchanged(noted["stamps"]):
        return None
    return _sound(images, noted["key"])


def _sound(images: Cache, key: str) -> Image | None:
    """Return an image whose files are as they were built; None if there is none."""
    image = images.find(key)
    try:
        if image is not None:
            image.check()
    except ImageDamagedError as e:
        _log.warning(None, "%s; it is built again now", e)
        return None
    return image


def _build(images: Cache, selection: Selection, request: str, progress: Progress) -> Image:
    progress(f"building the guest image: Linux {selection.release}, {selection.python}")
    sources = Sources()
    try:
        contents = gather(selection, sources)
        key = _digest([asdict(selection), _builder(), sources.digests])
        image = _sound(images, key) or images.add(key, partial(_make, contents, selection, sources))
        images.note(request, {"key": key, "stamps": sources.stamps})
    except KernelError as e:
        raise NotSupportedError(f"the kernel {selection.kernel} cannot be used: {e}") from e
    except OSError as e:
        raise NotSupportedError(f"the guest image cannot be built in {images.root}: {e}") from e
    return image


def _make(contents: Contents, selection: Selection, sources: Sources, directory: Path) -> dict[str, Any]:
    """Write the files of an image, and return its manifest."""
    (directory / "kernel").write_bytes(contents.kernel.bootable())
    zipped = directory / "python.zip"
    contents.interpreter.compile(contents.sources, str(zipped))
    with (directory / "initrd").open("wb") as file:
        archive = CpioWriter(file)
        contents.write(archive, zipped.read_bytes())
        archive.close()
    zipped.unlink()
    return {
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "selection": asdict(selection),
        "python": contents.interpreter.version,
        "modules": list(contents.modules),
        "packages": [asdict(each) for each in (*downloaded(selection.kernel), *owners(sources.digests))],
        "sources": sources.digests,
    }


@cache
def _builder() -> str:
    """Return a digest of this package, which decides what an image is."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return _digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
