"""What VMs boot, and how their guests run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import anyio

from uvm.backends.qemu.accel import NO_BOUNDARY, Accelerator, choose
from uvm.backends.qemu.commandline import Acceleration
from uvm.backends.qemu.saving import Boot
from uvm.backends.qemu.users import Choose, kvm_problem
from uvm.backends.qemu.vm import VM
from uvm.backends.workers import finish
from uvm.errors import HostError, NotSupportedError
from uvm.hresult import HResult
from uvm.schema.system import LinuxKernelDirect, VirtualMachine

if TYPE_CHECKING:
    from uvm.backends.qemu.guestimage import Image, ImageOptions
    from uvm.backends.qemu.guestimage.cache import Hold


class Boots:
    """What the VMs of a backend boot.

    :param binary: QEMU.
    :param wanted: how guests are to run.
    :param image: what the guest image is made of; None for this machine's own kernel and programs.
    :param require_isolation: refuse emulation.
    :param choose_user: chooses the users that QEMU runs as.
    """

    def __init__(
        self,
        binary: str,
        wanted: Literal["auto", "kvm", "tcg"],
        image: ImageOptions | None,
        *,
        require_isolation: bool,
        choose_user: Choose,
    ) -> None:
        self._binary, self._wanted, self._image = binary, wanted, image
        self._require_isolation = require_isolation
        self._choose_user = choose_user
        self._choosing = anyio.Lock()
        self._chosen: Accelerator | None = None

    async def of(
        self, machine: VirtualMachine, template: VM | None, operation: str
    ) -> tuple[Boot, Hold | None]:
        """Return what a VM boots, and what keeps its guest image from being pruned, if it boots one.

        It is its document's, or its template's, or the guest image, which may have changed since.

        :raises HostError: ERROR_FILE_NOT_FOUND for a boot file of the document.
        :raises NotSupportedError: guests are to be isolated, and would be emulated; or there is no image.
        """
        acceleration = await self.acceleration()
        chipset = machine.chipset
        direct = chipset.linux_kernel_direct if chipset is not None else None
        direct = direct or LinuxKernelDirect()
        if not direct.kernel_file_path and template is not None:
            held = None if template.image is None else template.image.again()
            return Boot(acceleration, template.boot.kernel, template.boot.initrd), held
        if not direct.kernel_file_path:
            image, held = await self._held_image()
            return Boot(acceleration, image.kernel, image.initrd), held
        for path in (direct.kernel_file_path, direct.initrd_path):
            if path and not await anyio.Path(path).is_file():
                raise HostError(operation, HResult.ERROR_FILE_NOT_FOUND, path)
        return Boot(acceleration, direct.kernel_file_path, direct.initrd_path), None

    async def acceleration(self) -> Acceleration:
        """Return how guests run, which is found out once.

        :raises NotSupportedError: they are to be isolated, and would be emulated.
        """
        async with self._choosing:
            if self._chosen is None:
                problem = kvm_problem(self._choose_user)
                self._chosen = await choose(self._wanted, self._binary, self._guest_image, problem)
        if self._require_isolation and self._chosen.name == "tcg":
            raise NotSupportedError(
                f"create a VM with require_isolation: guests would be emulated ({self._chosen.reason}). "
                f"{NO_BOUNDARY}; nothing was started"
            )
        return self._chosen.name

    async def _held_image(self) -> tuple[Image, Hold]:
        """Return the guest image, built again if it is pruned before it is held."""
        while True:
            image = await self._guest_image()
            held = await finish(image.hold, undo=_close)
            if held is not None:
                return image, held

    async def _guest_image(self) -> Image:
        from uvm.backends.qemu.guestimage import ImageOptions, guest_image

        return await guest_image(self._image or ImageOptions())


def _close(held: Hold | None) -> None:
    if held is not None:
        held.close()
