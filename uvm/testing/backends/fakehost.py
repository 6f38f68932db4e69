"""The in-memory backend as the host: used directly, or behind a stand-in for the DLLs of HCS."""

from __future__ import annotations

import os
from collections.abc import Sequence

from attrs import define, field

from uvm._repr import showing
from uvm._vm.vm import UtilityVM
from uvm.backend import JSON, ByteStream
from uvm.backends.fake import Call, FakeBackend, Rule
from uvm.backends.fake.gates import Action
from uvm.backends.fake.rules import Matching
from uvm.hresult import HResult
from uvm.options import LCOWOptions, WCOWOptions
from uvm.testing.backends.audit import audit
from uvm.testing.backends.rig import Control, HeldCalls, Host, HostCall, Network
from uvm.testing.vms import put_boot_files, windows_options

_DIRECTORY = "C:\\uvm-conformance"
_BOOT = "C:\\uvm-conformance-boot"
_NOT_HCS = frozenset({"close", "close process", "listen", "working set"})

#: What HCS has the guest do if HCS is connected to it.
_RELAYED = frozenset({"modify", "create process", "signal process", "terminate process", "modify process"})


@showing("fake")
@define(eq=False, repr=False)
class FakeHost(Host):
    """Control of a host that is a :class:`~uvm.backends.fake.FakeBackend`.

    For a rig whose backend is the fake itself, or one that gets its answers from it. For the latter, override
    :meth:`refuse`, if calls can fail before they reach the fake, :meth:`answer_twice`, and :meth:`dial`, if
    connections bypass the fake; and add to ``controls`` what that makes possible.

    :ivar fake: the host.
    """

    fake: FakeBackend
    controls: frozenset[Control] = frozenset(Control) - {Control.LINUX, Control.WINDOWS, Control.TWICE}
    blocking: frozenset[str] = frozenset()
    _rules: list[Rule[Action]] = field(factory=list, init=False)
    _gates: list[HeldCalls] = field(factory=list, init=False)
    _networks: int = field(default=0, init=False)

    # Boot.

    def linux(self) -> LCOWOptions:
        """Put boot files on the host, and return the options of a Linux VM that boots from them."""
        for name in ("vmlinux", "kernel", "initrd.img"):
            self.fake.files.add(f"{_BOOT}\\{name}", size=1 << 20)
        return LCOWOptions(boot_files_path=_BOOT)

    def windows(self) -> WCOWOptions:
        """Put boot files on the host, and return the options of a Windows VM that boots from them."""
        put_boot_files(self.fake)
        return windows_options()

    # Set-up.

    def path_of(self, name: str) -> str:
        """Return the path that a file of that name would have."""
        return f"{_DIRECTORY}\\{name}"

    def put_file(self, name: str, *, size_bytes: int = 1 << 20, content: bytes = b"") -> str:
        """Put a file on the host."""
        path = self.path_of(name)
        self.fake.files.add(path, size=max(size_bytes, len(content)), content=content)
        return path

    def put_directory(self, name: str) -> str:
        """Put a directory on the host."""
        path = self.path_of(name)
        self.fake.files.add_directory(path)
        return path

    def put_link(self, name: str, target: str) -> str:
        """Put a link on the host."""
        path = self.path_of(name)
        self.fake.files.add_link(path, target)
        return path

    def pipe_path(self, name: str) -> str:
        """Return the path of a pipe."""
        # The pipes of a machine are shared by all that runs the suite there at the same time.
        return rf"\\.\pipe\uvm-conformance-{os.getpid()}-{name}"

    def put_network(self, endpoints: int) -> Network:
        """Put a namespace with endpoints on the host."""
        self._networks += 1
        number = self._networks
        namespace_id = f"5eed0000-0000-0000-{number:04x}-000000000000"
        documents: tuple[JSON, ...] = tuple(
            {
                "ID": f"5eed0000-0000-0000-{number:04x}-{index + 1:012x}",
                "Name": f"network{number}-eth{index}",
                "HostComputeNamespace": namespace_id,
                "MacAddress": f"00-15-5D-00-{number:02X}-{index:02X}",
            }
            for index in range(endpoints)
        )
        host_network = f"5eed0000-0000-0000-{number:04x}-ffffffffffff"
        self.fake.network.add_network({"ID": host_network})
        self.fake.network.add_namespace({"ID": namespace_id})
        for document in documents:
            self.fake.network.add_endpoint(document)
        return Network(namespace_id, documents, host_network)

    def put_device(self, name: str) -> str:
        """Return the instance path of a device: the fake takes every one."""
        return f"PCI\\VEN_5EED\\{name}"

    # Events.

    def crash(self, system_id: str) -> None:
        """Have a system exit by itself."""
        machine = self.fake.vms.get(system_id)
        if machine is not None:
            machine.crash()

    async def dial(self, system_id: str, service_id: str) -> ByteStream:
        """Connect like the guest."""
        return self.fake.vms[system_id].dial(service_id)

    def calls(self) -> Sequence[HostCall]:
        """Return the calls to the fake that the host of a real backend would see as well."""
        seen: list[HostCall] = []
        relayed: dict[str, bool] = {}
        for call in (entry.call for entry in self.fake.request_log):
            # A call with a resource concerns a container in the VM.
            if call.operation == "create" and not call.resource:
                relayed[call.vm] = _relays(call.document)
            if relayed.get(call.vm) if _may_be_relayed(call) else _is_of_the_host(call):
                seen.append(HostCall(call.operation, call.vm, _resource(call), call.request_type))
        return seen

    def refuse(self, code: int = HResult.E_FAIL, *, operation: str = "", nth: int = 0) -> None:
        """Have calls fail."""
        self._rules.append(self.fake.faults.refuse(code, **self._matching(operation, nth)))

    def hold(self, *, operation: str = "", nth: int = 0) -> HeldCalls:
        """Park calls at a gate of the fake."""
        gate = self.fake.faults.hold(**self._matching(operation, nth))
        self._gates.append(gate)
        return gate

    def undisturbed(self) -> None:
        """Remove all rules, and let the parked calls proceed."""
        for rule in self._rules:
            rule.remove()
        for gate in self._gates:
            gate.close()

    def _matching(self, operation: str, nth: int) -> Matching:
        def fits(call: Call) -> bool:
            return operation in ("", call.operation) and self._reaches_the_host(call)

        return {"where": fits, "nth": nth} if nth else {"where": fits}

    def _reaches_the_host(self, call: Call) -> bool:
        if _may_be_relayed(call):
            machine = self.fake.vms.get(call.vm)
            return machine is not None and _relays(machine.document)
        return _is_of_the_host(call)

    # Inspection.

    def leftovers(self) -> list[str]:
        """Return what is left, including open handles of systems: a system exists while one is open."""
        return self.fake.leftovers()

    def differences(self, vm: UtilityVM) -> list[str]:
        """Return the differences between the ledgers and the device tree and guest of the fake."""
        machine = self.fake.vms[vm.id]
        found = audit(vm, machine)
        missing = [f"the ledgers have {fact}" for fact in sorted(found.expected - found.actual, key=repr)]
        return missing + [
            f"the machine has {fact}" for fact in sorted(found.actual - found.expected, key=repr)
        ]


def _resource(call: Call) -> str:
    return str(call.document["path"]) if call.to in ("grant", "revoke") else call.resource


def _may_be_relayed(call: Call) -> bool:
    return call.to == "guest" and call.operation in _RELAYED


def _is_of_the_host(call: Call) -> bool:
    return call.to != "guest" and call.operation not in _NOT_HCS


def _relays(document: JSON) -> bool:
    return document.get("VirtualMachine", {}).get("GuestConnection") is not None
