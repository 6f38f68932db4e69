"""The parts of a document that Linux and Windows VMs share."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from attrs import asdict

from uvm._document.plan import CreationPlan
from uvm._names import guid_key, pipe_path
from uvm.backend import JSON, HostInfo
from uvm.errors import NotSupportedError, OptionsError
from uvm.options import HvSocketService, LCOWOptions, Options, decode_policy
from uvm.schema import common as schema
from uvm.schema import devices, system
from uvm.schema.common import V21H1, V25H1_SERVER, StorageQoS, Version
from uvm.schema.json import to_json

if TYPE_CHECKING:
    from uvm.options import RegistryValue

#: SDDL: full access for SYSTEM and the administrators alone.
SYSTEM_AND_ADMINISTRATORS = "D:P(A;;FA;;;SY)(A;;FA;;;BA)"
#: The "Microsoft Windows" Secure Boot template.
SECURE_BOOT_TEMPLATE = "1734c6e8-3154-4dda-ba5f-a874cc483422"


def need_build(host: HostInfo, build: int, what: str) -> None:
    """Check that the host is new enough.

    :raises NotSupportedError: it is not.
    """
    if host.build < build:
        raise NotSupportedError(f"{what} needs Windows build {build} or newer; the host has {host.build}")


def memory_mb(options: Options) -> int:
    """Align memory to 2 MB, upwards."""
    return options.memory_mb + options.memory_mb % 2


def requested_processors(options: Options, host: HostInfo) -> int:
    """Return the requested number of processors, by default hcsshim's default."""
    if options.processors is not None:
        return options.processors
    return 1 if host.processors == 1 else 2


def processor_count(options: Options, host: HostInfo) -> int:
    """Return the number of processors of the VM: at most the host's."""
    return min(requested_processors(options, host), host.processors)


def _processor(options: Options, host: HostInfo) -> system.VirtualMachineProcessor:
    made = system.VirtualMachineProcessor(
        count=processor_count(options, host),
        limit=options.processor_limit,
        weight=options.processor_weight,
    )
    if options.cpu_group_id:
        need_build(host, V21H1, "a CPU group at creation")
        made.cpu_group = system.CpuGroup(id=options.cpu_group_id)
    return made


def _memory(options: Options) -> system.VirtualMachineMemory:
    """Return the memory, with the hints to the host of what the guest uses."""
    return system.VirtualMachineMemory(
        size_in_mb=memory_mb(options),
        allow_overcommit=options.allow_overcommit,
        enable_hot_hint=not isinstance(options, LCOWOptions) and options.allow_overcommit,
        enable_cold_discard_hint=isinstance(options, LCOWOptions) and options.cold_discard_hint,
        enable_deferred_commit=options.deferred_commit,
        low_mmio_gap_in_mb=options.low_mmio_gap_mb,
        high_mmio_base_in_mb=options.high_mmio_base_mb,
        high_mmio_gap_in_mb=options.high_mmio_gap_mb,
    )


def topology(options: Options, host: HostInfo) -> system.Topology:
    """Return the memory and the processors, with virtual NUMA nodes if they are asked for.

    :raises NotSupportedError: the host is too old for virtual NUMA, or for a CPU group.
    :raises OptionsError: the nodes do not add up to the VM.
    """
    memory, processors = _memory(options), _processor(options, host)
    made = system.Topology(memory=memory, processor=processors)
    if not options.has_numa:
        return made
    need_build(host, V25H1_SERVER, "virtual NUMA")
    made.numa = system.Numa(preferred_physical_nodes=[*options.numa_preferred_physical_nodes])
    if options.numa_max_processors_per_node:
        made.numa.max_size_per_node = options.numa_max_memory_per_node_mb
        count = system.Range(max=options.numa_max_processors_per_node)
        processors.numa_processors_settings = system.NumaProcessors(count_per_node=count)
    else:
        _check_numa_totals(options, host)
        made.numa.virtual_node_count = len(options.numa_mapped_physical_nodes)
        made.numa.settings = _numa_nodes(options)
    # The ACPI tables describe the nodes to the guest.
    memory.slit_type = "FirmwareFallbackMeasured"
    return made


def _numa_nodes(options: Options) -> list[system.NumaSetting]:
    nodes = zip(
        options.numa_mapped_physical_nodes,
        options.numa_processor_counts,
        options.numa_memory_blocks,
        strict=True,
    )
    return [
        system.NumaSetting(
            virtual_node_number=n,
            virtual_socket_number=n,
            physical_node_number=physical,
            count_of_processors=processors,
            count_of_memory_blocks=blocks,
            memory_backing_type="Physical",
        )
        for n, (physical, processors, blocks) in enumerate(nodes)
    ]


def _check_numa_totals(options: Options, host: HostInfo) -> None:
    for what, nodes, vm in (
        ("processors", sum(options.numa_processor_counts), processor_count(options, host)),
        ("MB of memory", sum(options.numa_memory_blocks), memory_mb(options)),
    ):
        if nodes != vm:
            raise OptionsError(f"the virtual NUMA nodes have {nodes} {what}, the VM has {vm}")


def hvsocket_services(options: Options) -> dict[str, devices.HvSocketServiceConfig]:
    """Return the entries of the service table that are in the options."""
    return {guid: hvsocket_service(service) for guid, service in options.hvsocket_services.items()}


def hvsocket_service(service: HvSocketService) -> devices.HvSocketServiceConfig:
    """Return an entry of the service table."""
    return devices.HvSocketServiceConfig(**asdict(service))


def add_service(table: dict[str, devices.HvSocketServiceConfig], service_id: str, binds: str) -> None:
    """Add a service that a guest needs, instead of one of the options; administrators may connect to it.

    :param binds: the SDDL descriptor for listening.
    """
    for other in [each for each in table if guid_key(each) == service_id]:
        del table[other]
    table[service_id] = devices.HvSocketServiceConfig(
        allow_wildcard_binds=True,
        bind_security_descriptor=binds,
        connect_security_descriptor=SYSTEM_AND_ADMINISTRATORS,
    )


def registry_value(value: RegistryValue) -> schema.RegistryValue:
    """Return a registry value of a document."""
    values = asdict(value)
    hive, name, volatile = (values.pop(each) for each in ("hive", "key", "volatile"))
    return schema.RegistryValue(key=schema.RegistryKey(hive=hive, name=name, volatile=volatile), **values)


def add_consoles(vm_devices: devices.Devices, options: Options, host: HostInfo) -> None:
    """Add the serial and the video console, if they are asked for."""
    if options.console_pipe:
        windows = host.paths == "windows"
        pipe = pipe_path(options.console_pipe, "console_pipe") if windows else options.console_pipe
        vm_devices.com_ports = {"0": devices.ComPort(named_pipe=pipe)}
    if options.graphics_console:
        vm_devices.keyboard = devices.Keyboard()
        vm_devices.enhanced_mode_video = devices.EnhancedModeVideo()
        vm_devices.video_monitor = devices.VideoMonitor()


def launch_data(options: Options) -> str:
    """Return the SHA-256 of the security policy, which the hardware attests, in base64."""
    from hashlib import sha256

    digest = sha256(decode_policy(options.security_policy)).digest()
    return base64.b64encode(digest).decode("ascii")


def finish(
    options: Options, host: HostInfo, vm: system.VirtualMachine, *, id: str, minor: int = 1
) -> CreationPlan:
    """Return the plan of a VM, without what its guest system adds; the schema version is 2.`minor`."""
    vm.stop_on_reset = True
    limits = StorageQoS(
        iops_maximum=options.storage_qos_iops_max, bandwidth_maximum=options.storage_qos_bandwidth_max
    )
    if limits != StorageQoS():
        vm.storage_qos = limits
    return CreationPlan(
        document=_document(options, vm, minor),
        os="linux" if isinstance(options, LCOWOptions) else "windows",
        id=id,
        processors=processor_count(options, host),
        memory_mb=memory_mb(options),
        scsi_controllers=options.scsi_controllers,
    )


def _document(options: Options, vm: system.VirtualMachine, minor: int) -> JSON:
    """Return the whole document, with ``additional_json`` merged over it."""
    document = to_json(
        system.ComputeSystem(
            owner=options.owner,
            schema_version=Version(major=2, minor=minor),
            virtual_machine=vm,
            should_terminate_on_last_handle_closed=not options.survive_process,
        )
    )
    if options.additional_json is None:
        return document
    merged: JSON = _merged(document, json.loads(options.additional_json))
    return merged


def _merged(ours: Any, theirs: Any) -> Any:
    """Merge `theirs` over `ours`: objects are merged, anything else is replaced.

    A null leaves an object as it is, but replaces anything else (hcsshim's ``mergemaps``).
    """
    if not isinstance(ours, dict):
        return theirs
    if theirs is None:
        return ours
    if not isinstance(theirs, dict):
        return theirs
    return ours | {k: _merged(ours[k], v) if k in ours else v for k, v in theirs.items()}
