"""Guest images: a kernel and a first root file system, built in seconds of what the machine has.

:mod:`.selection` chooses kernel and programs; :mod:`.gather` reads them; :mod:`.contents` lays
them out for the guest; :mod:`.builder` puts it together; :mod:`.cache` keeps it.
"""

from uvm.backends.qemu.guestimage.builder import build, guest_image
from uvm.backends.qemu.guestimage.cache import Image, ImageDamagedError
from uvm.backends.qemu.guestimage.selection import ImageOptions

__all__ = ["Image", "ImageDamagedError", "ImageOptions", "build", "guest_image"]
