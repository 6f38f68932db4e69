"""The Host Compute Service of Windows as a backend."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4
from weakref import WeakValueDictionary

from uvm._names import host_path_key
from uvm.backend import JSON, VM_GROUP, AccessMask, HostFiles, HostInfo, HostNetwork, HostPipes
from uvm.backends.hcs.calls import ComputeService
from uvm.backends.hcs.dlls import CData
from uvm.backends.hcs.host import Host
from uvm.backends.hcs.network import HCSNetwork
from uvm.backends.hcs.platform import Platform, windows_platform
from uvm.backends.hcs.system import HCSSystem
from uvm.backends.hcs.text import check, parse_list, parse_object, take
from uvm.backends.winerrors import NOTHING_THERE, tolerating


class HCSBackend:
    """A Windows host with Hyper-V (:class:`~uvm.backend.Backend`), through computecore.dll.

    :param platform: replaces what is otherwise loaded from Windows.
    :ivar name: the name under which the backend is registered.
    :ivar files: the host's file system.
    :ivar network: the host's networks.
    :ivar pipes: the host's named pipes.
    :raises NotSupportedError: this machine lacks something that is needed; the message says what.
    """

    name: Final = "hcs"

    def __init__(self, *, platform: Platform | None = None) -> None:
        if platform is None:
            platform = windows_platform()
        self._host = Host(ComputeService.of(platform.core), platform)
        self.files: Final[HostFiles] = platform.machine.files
        self.pipes: Final[HostPipes] = platform.transport.pipes
        self.network: Final[HostNetwork] = HCSNetwork(platform.network, platform.workers)
        self._turns: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._turns_change = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    async def host(self) -> HostInfo:
        """Return facts about the host."""
        return await self._host.platform.machine.facts()

    async def service_properties(self, *types: str) -> JSON:
        """Return HCS's own properties (``HcsGetServiceProperties``)."""
        operation = "query the service"
        query = {"PropertyTypes": list(types)} if types else {}
        answer = await self._ask_service(operation, self._host.functions.HcsGetServiceProperties, query)
        return parse_object(answer, operation)

    async def modify_service(self, request: JSON) -> None:
        """Change HCS's own settings (``HcsModifyServiceSettings``)."""
        await self._ask_service("modify the service", self._host.functions.HcsModifyServiceSettings, request)

    async def _ask_service(self, operation: str, call: Callable[[CData, CData], int], document: JSON) -> str:
        """Make a call to HCS itself with a document, and return its answer."""
        library, text = self._host.service.library, self._host.document(document, operation)

        def ask() -> str:
            out = library.ffi.new("PWSTR *")
            hresult = call(text, out)
            answer = take(library, out[0])
            check(operation, hresult, answer)
            return answer

        return await self._host.platform.workers.run(ask)

    async def grant_access(self, path: str, to: str, mask: AccessMask = "read") -> None:
        """Grant a VM (``HcsGrantVmAccess``), or every VM, access to a path.

        HCS's call takes no mask, and older versions of it know no VM group, whose access is therefore written
        into the path's ACL.
        """
        if to == VM_GROUP:
            await self._host.platform.machine.grant_group(path, mask)
        else:
            grant = self._host.functions.HcsGrantVmAccess
            await self._access(f"grant {to} access to {path}", path, to, grant)

    async def revoke_access(self, path: str, to: str) -> None:
        """Revoke that access (``HcsRevokeVmAccess``). Does nothing if the path no longer exists."""
        if to == VM_GROUP:
            await self._host.platform.machine.revoke_group(path)
        else:
            revoke = self._host.functions.HcsRevokeVmAccess
            # What is not there may be a scratch disk that was deleted with its container.
            with tolerating(*NOTHING_THERE):
                await self._access(f"revoke access of {to} to {path}", path, to, revoke)

    async def create(self, system_id: str, document: JSON) -> HCSSystem:
        """Create a compute system (``HcsCreateComputeSystem``). On cancellation it is terminated."""
        host, operation = self._host, f"create {system_id}"
        out = host.service.library.ffi.new("HCS_SYSTEM *")
        name, text = host.text(system_id), host.document(document, operation)
        made: HCSSystem | None = None
        try:
            try:
                await host.service.operate(
                    operation,
                    lambda o: host.functions.HcsCreateComputeSystem(name, text, o, host.null, out),
                    linger_seconds=host.platform.grace_seconds,
                )
            finally:
                # HCS hands the handle out early, so there may be one whatever the outcome.
                if out[0] != host.null:
                    made = HCSSystem(host, host.system_handle(system_id, out[0]))
            assert made is not None, "HCS returned neither a system nor an error"
            await made._watch()
        except BaseException:
            if made is not None:
                await made._discard()
            raise
        return made

    async def open(self, system_id: str) -> HCSSystem:
        """Return a new handle of a system (``HcsOpenComputeSystem``)."""
        handle = await self._host.open_system(system_id, f"open {system_id}")
        system = HCSSystem(self._host, handle)
        try:
            await system._watch()
        except BaseException:
            await system.close()
            raise
        return system

    async def enumerate(self, query: JSON | None = None) -> list[JSON]:
        """Return the compute systems (``HcsEnumerateComputeSystems``)."""
        call, text = self._host.functions.HcsEnumerateComputeSystems, self._host.document(query, "enumerate")
        answer = await self._host.service.operate("enumerate", lambda o: call(text, o))
        return parse_list(answer, "enumerate", dict)

    def new_id(self) -> str:
        """Return a new GUID."""
        return str(uuid4())

    async def __aenter__(self) -> HCSBackend:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._host.platform.transport.aclose()

    async def _access(self, operation: str, path: str, to: str, call: Any) -> None:
        name, at = self._host.text(to), self._host.text(path)

        def change() -> None:
            # A cancelled grant goes on in its thread; the revocation must not overtake it.
            with self._turn(path):
                check(operation, call(name, at))

        await self._host.platform.workers.run(change)

    def _turn(self, path: str) -> threading.Lock:
        """Return the lock on changes of a path's access."""
        with self._turns_change:
            return self._turns.setdefault(host_path_key(path, "windows"), threading.Lock())
