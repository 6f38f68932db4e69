"""The public surface: what has a name here is for users, and nothing else is."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import uvm

#: Per public package or module its names; of a package that only holds modules, those.
SURFACE = {
    "uvm": """
        UtilityVM VMState LCOWOptions WCOWOptions from_hcsshim open_backend FakeBackend
        BlockCIMBootFiles HvSocketService PCIDevice RegistryValue VmbFSBootFiles CreationPlan
        GuestTimeouts OutputHandler VMMemory VMStatistics Quarantined
        DiskType Mount LCOWLayer WCOWLayer RootFileSystem
        Lease Orphan AdapterLease CombinedLease NamespaceLease PipeLease Plan9Lease ScsiLease SharedLease
        VPCILease VPMemLease VSMBLease
        AttachedAdapter CombinedRoot MappedPipe Plan9Share ScsiDisk SharedPath VPCIDevice VPMemLayer VSMBShare
        connect_unix listen_unix
        GuestConnection GuestFeatures Container ContainerExit Process ProcessInput ProcessOutput
        CompletedProcess
        Backend ByteStream Concurrency FileInfo Guest HostFiles HostInfo HostNetwork HostProcess
        Listener System
        UVMError AccessDeniedError AlreadyReleasedError AnswerLostError BridgeClosedError ErrorRecord
        ExitStatus GuestError HostError HostPathError NoSpaceError NotAttachedError NotSupportedError
        OptionsError OutputLimitError RefusedError SchemaError StreamBrokenError StreamBusyError
        StreamClosedError UndoFailedError UnknownOptionError UnknownOutcomeError VMExitedError VMStateError
        WireError
    """,
    "uvm.backend": """
        AccessMask BROKEN_STREAM Backend ByteStream Concurrency FileInfo Guest HCS_CONCURRENCY HostFiles
        HostInfo HostNetwork HostProcess JSON Listener System VM_GROUP
    """,
    "uvm.backends": "backend_factory backend_names choose_backend open_backend",
    "uvm.devices": "base directories kinds layers ledger network pipes plan9 scsi slots vpci vpmem vsmb",
    "uvm.errors": """
        UVMError AccessDeniedError AlreadyReleasedError AnswerLostError BridgeClosedError ErrorRecord
        ExitStatus GuestError HostError HostPathError NoSpaceError NotAttachedError NotSupportedError
        OptionsError OutputLimitError RefusedError UndoFailedError UnknownOptionError UnknownOutcomeError
        VMExitedError VMStateError WireError
    """,
    "uvm.hresult": "HResult SYSTEM_ENDED hresult hresult_from_win32 hresult_name",
    "uvm.options": """
        BlockCIMBootFiles HCSSHIM HvSocketService INVERTED LCOWOptions Options PCIDevice RegistryValue
        VmbFSBootFiles WCOWOptions decode_policy from_hcsshim
    """,
    "uvm.schema": """
        common container devices field gcs guest json network process properties requests secrets system
    """,
    "uvm.testing": "backends conformance replay",
}
#: What may be done with a VM.
VM = """
    create id runtime_id os options host plan state exit_status capabilities features guest
    start wait shutdown terminate pause resume crash save detach close
    scsi vpmem vsmb plan9 vpci pipes network layers share shared mount_layers ledgers quarantined orphans
    run open_process create_container
    stats properties assigned_memory_bytes update_memory update_cpu_limits update_container_memory_limits
    set_cpu_group release_cpu_group update_hvsocket_service remove_hvsocket_service modify guest_request
    inject_policy_fragment set_log_sources start_log_forwarding stop_log_forwarding dump_stacks
"""
#: Public, and no library: the command.
COMMAND = {"uvm.cli", "uvm.__main__"}


def modules_in(package: str) -> set[str]:
    path = import_module(package).__path__
    return {module.name for module in iter_modules(path) if not module.name.startswith("_")}


@pytest.mark.parametrize("name", SURFACE)
def test_the_public_names_are_those(name: str) -> None:
    module = import_module(name)
    names = getattr(module, "__all__", None)
    assert sorted(modules_in(name) if names is None else names) == sorted(SURFACE[name].split())


@pytest.mark.parametrize("name", SURFACE)
def test_every_public_name_resolves_and_is_listed(name: str) -> None:
    module = import_module(name)
    names = SURFACE[name].split()
    if hasattr(module, "__all__"):
        assert [each for each in names if getattr(module, each, None) is None] == []
        assert set(names) <= set(dir(module))


def test_no_other_module_is_public() -> None:
    known = {name.partition(".")[2] for name in {*SURFACE, *COMMAND} - {"uvm"}}
    files = {path.stem for path in Path(uvm.__file__).parent.glob("[!_]*.py")}
    assert modules_in("uvm") | files == known - {"__main__"}


@pytest.mark.anyio
async def test_a_vm_shows_what_a_user_may_do_with_it() -> None:
    async with uvm.UtilityVM.create(uvm.LCOWOptions(), backend=uvm.FakeBackend()) as vm:
        assert sorted(name for name in dir(vm) if not name.startswith("_")) == sorted(VM.split())
