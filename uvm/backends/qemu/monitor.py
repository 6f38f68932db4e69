"""The QEMU of one VM as its devices ask it: commands whose refusals are HCS's errors, and unplugging.

A device is unplugged by the guest, in its own time: QEMU is asked, and reports by an event that the guest has
released the device, or that it refuses to.
"""

from __future__ import annotations

import base64
import binascii
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

import anyio
from attrs import define, field

from uvm._async import Flag
from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.qemu.commandline import CONSOLE_BYTES
from uvm.backends.qemu.exits import Exit
from uvm.backends.qemu.qmp import QMP, QMPClosedError, QMPError
from uvm.errors import HostError
from uvm.hresult import HResult

#: How long a guest may take to release a PCI device.
UNPLUG_SECONDS: Final = 30.0


@define(eq=False)
class _Unplug:
    """A device that the guest is asked to release.

    :ivar refused: the guest has said that it does not.
    """

    over: Flag = field(factory=Flag)
    refused: bool = False


@showing("id")
class Monitor:
    """QEMU, over its monitor.

    :param vm_id: the id of the compute system.
    :param ends: the exit of the VM, of which QEMU's events are noted.
    :ivar id: the id of the compute system.
    :ivar qmp: the connection, from :meth:`connect` on.
    """

    def __init__(self, vm_id: str, ends: Exit) -> None:
        self.id: str = vm_id
        self.qmp: QMP
        self._exit = ends
        self._unplugs: dict[str, _Unplug] = {}

    def connect(self, sock: socket.socket) -> None:
        """Use a socket, which belongs to the monitor from now on."""
        self.qmp = QMP(sock, self._on_event)

    async def ask(
        self,
        operation: str,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        fds: Sequence[int] = (),
    ) -> Any:
        """Have QEMU carry out a command for an operation, and return what it returns.

        :raises HostError: QEMU refused, or the VM has exited.
        """
        try:
            return await self.qmp.execute(command, arguments, fds=fds)
        except QMPError as error:
            raise HostError(f"{operation} {self.id}", HResult.E_FAIL, str(error)) from error
        except QMPClosedError as error:
            raise self._exit.error(operation) from error

    async def unplug(self, operation: str, device: str) -> None:
        """Have QEMU unplug a device, and wait until the guest has released it.

        :raises HostError: the guest refuses, or does not answer in time; the device stays.
        """
        asked = self._unplugs[device] = _Unplug()
        try:
            with anyio.move_on_after(UNPLUG_SECONDS) as limit:
                await self.ask(operation, "device_del", {"id": device})
                await asked.over.wait()
        finally:
            self._unplugs.pop(device, None)
        if self.qmp.closed:
            raise self._exit.error(operation)
        if asked.refused or limit.cancelled_caught:
            why = "refuses to release it" if asked.refused else f"has not released it in {UNPLUG_SECONDS:g} s"
            raise HostError(f"{operation} {self.id}", HResult.E_FAIL, f"the guest {why}; {device} stays")

    async def console(self) -> str:
        """Return the end of what the guest has written to its console, and forget it."""
        try:
            read = await self.qmp.execute(
                "ringbuf-read", {"device": "console", "size": CONSOLE_BYTES, "format": "base64"}
            )
            return base64.b64decode(str(read)).decode("utf-8", "replace")
        except (QMPError, QMPClosedError, binascii.Error):
            return ""

    def close(self) -> None:
        """Close the connection; what waits ends."""
        self.qmp.close()
        for asked in self._unplugs.values():
            asked.over.set()

    def _on_event(self, name: str, data: JSON) -> None:
        if name not in ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"):
            self._exit.on_event(name, data)
            return
        asked = self._unplugs.get(str(data.get("device")))
        if asked is not None:
            asked.refused = name != "DEVICE_DELETED"
            asked.over.set()
