"""The public surface: what has a name here is for users, and nothing else is."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import uvm
from tests.session import WAYS, play, reachable
from uvm.backends.hcs.backend import HCSBackend
from uvm.backends.hcs.process import HCSProcess
from uvm.backends.hcs.system import HCSSystem

#: Per public package or module its names; of a package that only holds modules, those.
SURFACE = {
    "uvm": """
        UtilityVM VMState Pool start_vm LCOWOptions WCOWOptions from_hcsshim open_backend FakeBackend
        options_from_annotations
        BlockCIMBootFiles HvSocketService LayerBootFiles PCIDevice RegistryValue Template VmbFSBootFiles
        CreationPlan
        GuestTimeouts NetworkSetup OutputHandler VMMemory VMStatistics Quarantined
        DiskType Mount BlockCIM BlockCIMLayer LCOWLayer WCOWLayer RootFileSystem
        ContainerResources Pod PodContainer
        Lease LeaseState Orphan RecentRequest StuckDevice UnrevokedAccess VMDevices
        AdapterLease BlockCIMLease CombinedLease NamespaceLease PipeLease Plan9Lease ScsiLease
        SharedLease VPCILease VPMemLease VSMBLease
        PCI_ID_TYPES
        AttachedAdapter BlockCIMVolume CombinedRoot MappedPipe Plan9Share ScsiDisk SharedPath VPCIDevice
        VPMemLayer VSMBShare
        CPUGroup ContainerMount connect_unix cpu_groups create_cpu_group delete_cpu_group listen_unix
        HostNamespace create_namespace
        GuestConnection GuestFeatures Container ContainerExit Process ProcessInput ProcessOutput
        CompletedProcess GuestFile GuestFiles
        Backend ByteStream Concurrency FileInfo Guest HostFiles HostInfo HostNetwork HostPipes HostProcess
        Listener System
        UVMError UVMErrorGroup
        AccessDeniedError AlreadyReleasedError AnswerLostError ArchiveError BridgeClosedError ErrorRecord
        ExitStatus GuestError GuestFileError HostError HostPathError NoSpaceError NotAttachedError
        NotSupportedError
        OptionsError OrphanError
        OutputLimitError ProcessError ProcessFailedError ProcessTimeoutError RefusedError RPCError
        SchemaError StreamBrokenError StreamBusyError StreamClosedError StreamVMExitedError UndoFailedError
        UndoUnknownError UnknownOptionError UnknownOutcomeError VMExitedError VMStateError WireError
    """,
    "uvm.backend": """
        AccessMask BROKEN_STREAM Backend ByteStream Concurrency EagerByteStream FileInfo Guest
        HCS_CONCURRENCY HostFiles HostInfo HostNetwork HostPipes HostProcess JSON Listener System VM_GROUP
    """,
    "uvm.backends": "backend_factory backend_names choose_backend open_backend",
    "uvm.devices": """
        base blockcims directories kinds layers ledger network pipes plan9 scsi slots vpci vpmem vsmb
    """,
    "uvm.errors": """
        UVMError UVMErrorGroup
        AccessDeniedError AlreadyReleasedError AnswerLostError ArchiveError BridgeClosedError ErrorRecord
        ExitStatus GuestError GuestFileError HostError HostPathError NoSpaceError NotAttachedError
        NotSupportedError
        OptionsError OrphanError
        OutputLimitError ProcessError ProcessTimeoutError RPCCode RPCError RefusedError UndoFailedError
        UndoUnknownError UnknownOptionError
        UnknownOutcomeError VMExitedError VMStateError WireError
    """,
    "uvm.hresult": "HResult SYSTEM_ENDED hresult hresult_from_win32 hresult_name",
    "uvm.options": """
        BlockCIMBootFiles HCSSHIM HvSocketService INVERTED LCOWOptions LayerBootFiles Options PCIDevice
        RegistryValue Template VmbFSBootFiles WCOWOptions decode_policy from_hcsshim
        ContainerAnnotations container_annotations expanded_annotations options_from_annotations
        unknown_annotations
    """,
    "uvm.schema": """
        common container devices gcs guest json network process properties requests secrets system
        template
    """,
    "uvm.otel": "instrument uninstrument",
    "uvm.testing": "backends clocks conformance machines ncproxy plugin replay requests strategies types vms",
}
#: What may be done with a VM.
VM = """
    create id runtime_id os options host plan state started_at exited_at exit_status
    capabilities features protocol_version guest
    start wait settled shutdown terminate pause resume crash save detach close
    save_template template_id is_clone
    scsi vpmem vsmb plan9 vpci pipes block_cims network network_setup layers share shared mount_layers
    mount_in_container container_creation
    devices ledgers quarantined orphans
    run open_process files create_container open_container delete_container_state
    stats properties assigned_memory_bytes
    update update_memory update_cpu_limits update_container_memory_limits
    set_cpu_group release_cpu_group update_hvsocket_service remove_hvsocket_service modify guest_request
    inject_policy_fragment set_log_sources start_log_forwarding stop_log_forwarding dump_stacks
"""
LEASE = "give_up gone release released state"
#: What may be done with what one holds, per class. Frozen values have their fields.
HELD = {
    "ScsiBus": "attach detach disks find guest_path",
    "VPMemBus": "add guest_path layers remove",
    "VSMBBus": "add default_options guest_path remove shares",
    "Plan9Bus": "add shares",
    "VPCIBus": "assign devices remove",
    "PipeBus": "add pipes remove",
    "NetworkBus": """
        adapters add_endpoint add_guest_adapter add_namespace namespaces remove_all_adapters remove_endpoint
        remove_guest_adapter remove_namespace setup update_adapter
    """,
    "BlockCIMBus": "mount volumes",
    "BlockCIMLease": f"{LEASE} guest_path volume_guid",
    "LayersBus": "combine remove roots",
    "ScsiLease": f"{LEASE} controller guest_path host_path lun",
    "VPMemLease": f"{LEASE} guest_path host_path",
    "VSMBLease": f"{LEASE} guest_path host_path name share_path",
    "Plan9Lease": f"{LEASE} files guest_path host_path name",
    "SharedLease": f"{LEASE} guest_path host_path",
    "VPCILease": f"{LEASE} function instance_path vmbus_guid vmbus_instance_id",
    "PipeLease": f"{LEASE} host_path",
    "HostNamespace": "add_endpoint create_endpoint endpoints id release released",
    "NamespaceLease": f"{LEASE} add_endpoint id",
    "AdapterLease": f"{LEASE} endpoint_id namespace_id nic_id",
    "CombinedLease": f"{LEASE} root",
    "ContainerMount": """
        container_id container_path host_path read_only release released share state
    """,
    "RootFileSystem": "gone layers release released root scratch scratch_path state storage",
    "Pod": """
        attach_resources close containers create create_container end id network run_container run_sandbox
        sandbox vm
    """,
    "PodContainer": """
        aclose closed container exit files id init open_process resources role run start wait
    """,
    "ContainerResources": "container_id document leases release released root state",
    "Orphan": "error key ledger release since slot what where",
    "Container": """
        aclose delete_state exit files id modify open_init open_process processes properties run shutdown
        signal start statistics terminate update wait
    """,
    "Process": "aclose args communicate exit_code kill pid resize signal stderr stdin stdout stream wait",
    "ProcessInput": "aclose extra extra_attributes send send_eof",
    "ProcessOutput": "aclose extra extra_attributes receive",
    "GuestConnection": """
        aclose capabilities close closed create_container delete_container_state dump_stacks features files
        modify
        modify_service open_container open_process os protocol_version run serve shutdown start_guest
        update_container wait_closed
    """,
    "FakeBackend": """
        access clock create enumerate faults files grant_access host hosted_systems info leftovers
        misbehaviour modify_service name network new_id open pipes programs request_log revoke_access
        service_properties vms
    """,
    "FakeSystem": """
        close crash create_process id listen modify open_process pause properties resume runtime_id save
        shutdown start terminate vm wait working_set_bytes
    """,
    "FakeHostProcess": "close modify pid properties signal stderr stdin stdout terminate vm wait",
    "Faults": "clear crash delay hang hold lose refuse rules",
    "Rule": "fired matcher remove seen",
    "Gate": "close pending wait",
    "RequestLog": "clear dropped entries listen render",
}
HCS = ((HCSBackend, uvm.Backend), (HCSSystem, uvm.System), (HCSProcess, uvm.HostProcess))
#: Public, and no library: the command, and the program that VMs run.
#: Derived from all the others, as tests/sync holds.
SYNC = {"uvm.sync"}
COMMAND = {"uvm.agent", "uvm.cli", "uvm.__main__"}


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
    known = {name.partition(".")[2] for name in {*SURFACE, *SYNC, *COMMAND} - {"uvm"}}
    files = {path.stem for path in Path(uvm.__file__).parent.glob("[!_]*.py")}
    assert modules_in("uvm") | files == known - {"__main__"}


@pytest.mark.anyio
async def test_a_vm_shows_what_a_user_may_do_with_it() -> None:
    async with uvm.UtilityVM.create(uvm.LCOWOptions(), backend=uvm.FakeBackend()) as vm:
        assert shown(vm) == set(VM.split())


def shown(value: object) -> set[str]:
    return {name for name in dir(value) if not name.startswith("_")}


@pytest.mark.anyio
async def test_what_one_holds_shows_what_may_be_done_with_it_and_no_more() -> None:
    found: dict[str, set[str]] = {}

    def look(**held: object) -> None:
        for _, each in reachable(held, "held", {}):
            kind = type(each)
            # What the fake's guests have is named as what is held of them.
            if kind.__name__ in HELD and not kind.__module__.startswith("uvm.backends.fake.guest"):
                found.setdefault(kind.__name__, set()).update(shown(each))

    for os, options in WAYS.values():
        await play(look, os, **options)
    assert found == {name: set(names.split()) for name, names in HELD.items()}


@pytest.mark.parametrize(("cls", "protocol"), HCS)
def test_a_handle_of_hcs_shows_what_its_protocol_has(cls: type, protocol: type) -> None:
    assert shown(cls) <= shown(protocol)
