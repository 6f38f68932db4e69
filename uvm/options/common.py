"""The options that Linux and Windows VMs share (hcsshim's ``Options`` and ``ConfidentialCommonOptions``)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from attrs import field, frozen

from uvm._arguments import refuse_twice
from uvm._checks import (
    I32,
    U32,
    U64,
    Checked,
    check_fields,
    each,
    flag,
    go,
    guid,
    instance,
    items,
    items_or_value,
    optional_guid,
    path,
    plain_guid,
    text,
    whole,
    without_mark,
)
from uvm._names import GuestOS, guid_key
from uvm._repr import call_of
from uvm.errors import OptionsError
from uvm.options.template import Template, differences

#: The number of controller GUIDs.
MAX_SCSI_CONTROLLERS = 4
#: The whole of each processor.
MAX_PROCESSOR_LIMIT = 100_000
MAX_PROCESSOR_WEIGHT = 10_000

#: Stands for any physical NUMA node in :attr:`Options.numa_mapped_physical_nodes`.
_ANY_PHYSICAL_NODE = 0xFF
_MAX_PHYSICAL_NODES = 64
#: hcsshim counts nodes from 0 and allows the number 64, so there may be one more.
_MAX_VIRTUAL_NODES = 65
NUMA = (
    "numa_max_processors_per_node",
    "numa_max_memory_per_node_mb",
    "numa_preferred_physical_nodes",
    "numa_mapped_physical_nodes",
    "numa_processor_counts",
    "numa_memory_blocks",
)
#: What the guest's first request says beside the policy.
_POLICY = ("security_policy_enforcer", "uvm_reference_info_file", "uvm_hash_envelope_reference_info_file")


@frozen(kw_only=True)
class HvSocketService(Checked):
    """An entry of the Hyper-V socket service table; the descriptors are SDDL."""

    bind_security_descriptor: str = field(default="", metadata=go("BindSecurityDescriptor", text))
    connect_security_descriptor: str = field(default="", metadata=go("ConnectSecurityDescriptor", text))
    allow_wildcard_binds: bool = field(default=False, metadata=go("AllowWildcardBinds", flag))
    disabled: bool = field(default=False, metadata=go("Disabled", flag))

    __repr__ = call_of


def _services(value: Mapping[str, HvSocketService]) -> Mapping[str, HvSocketService]:
    given: Any = value
    if not isinstance(given, Mapping):
        return value
    services: list[tuple[Any, Any]] = [(plain_guid(each), service) for each, service in given.items()]
    refuse_twice("hvsocket_services", [guid_key(each) for each, _ in services if isinstance(each, str)])
    return dict(services)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _json_text(value: str | Mapping[str, Any] | None) -> str | None:
    """Return ``additional_json`` as text, which cannot be changed afterwards."""
    if value is None:
        return None
    try:
        source = without_mark(value) if isinstance(value, str) else json.dumps(dict(value), allow_nan=False)
        document = json.loads(source, parse_constant=_refuse_constant)
    except (TypeError, ValueError, RecursionError) as e:
        raise OptionsError(f"additional_json must be a JSON object: {e}") from e
    if not isinstance(document, dict):
        raise OptionsError(f"additional_json must be a JSON object, not {type(document).__name__}")
    return source


@frozen(kw_only=True, eq=False)
class Options(Checked):
    r"""What Linux and Windows VMs have in common. Host paths are absolute, and may be `os.PathLike`.

    :ivar id: the compute system's id; empty: a fresh GUID.
    :ivar owner: the owner that lists of compute systems show.
    :ivar memory_mb: memory, at least 1; an odd size is raised to the next even one.
    :ivar low_mmio_gap_mb: size of the MMIO space below 4 GiB; 0: the platform's choice.
    :ivar high_mmio_base_mb: start of the MMIO space above 4 GiB; 0: the platform's choice.
    :ivar high_mmio_gap_mb: size of the MMIO space above 4 GiB; 0: the platform's choice.
    :ivar allow_overcommit: back the memory with the host's virtual memory; False: with physical memory.
    :ivar fully_physically_backed: back the devices with physical memory too.
    :ivar deferred_commit: commit virtual memory when it is touched first.
    :ivar processors: virtual processors, at most the host's. None: 2, or 1 on a host with only one.
    :ivar processor_limit: what share of each processor the VM may use, in 1/100,000: 1 to 100,000 (100 %);
        0: no limit.
    :ivar processor_weight: weight against other VMs when the host is busy, 1 to 10,000; 0: HCS's own, 100.
    :ivar storage_qos_iops_max: storage operations per second, at most; 0: no limit.
    :ivar storage_qos_bandwidth_max: bytes of storage traffic per second, at most; 0: no limit.
    :ivar disable_compartment_namespace: let a Windows container see the other network compartments.
    :ivar cpu_group_id: the CPU group to start in; a host older than build 19043 moves the VM into it once it
        runs.
    :ivar resource_partition_id: the resource partition to start in; not together with a CPU group.
    :ivar network_config_proxy: the pipe of a network configuration proxy, which supplies the adapters: see
        :meth:`uvm.UtilityVM.network_setup`. Needs the extra ``utilityvm[ncproxy]``.
    :ivar process_dump_location: the guest's directory for dumps of processes.
    :ivar no_writable_file_shares: deny writable SMB and Plan9 shares.
    :ivar scsi_controllers: SCSI controllers, of 64 disks each; 0: none.
    :ivar dump_directory: the host's directory for a Windows guest's crash dumps and saved states.
    :ivar hvsocket_services: more entries of the Hyper-V socket service table, by service GUID; those that the
        VM needs for itself win.
    :ivar numa_max_memory_per_node_mb: implicit virtual NUMA: memory of a node, at most.
    :ivar numa_max_processors_per_node: implicit virtual NUMA: processors of a node, at most; 0 is no NUMA.
    :ivar numa_preferred_physical_nodes: physical nodes to prefer.
    :ivar numa_mapped_physical_nodes: explicit virtual NUMA: the physical node of each; all 255 is any.
    :ivar numa_processor_counts: explicit virtual NUMA: the processors of each node.
    :ivar numa_memory_blocks: explicit virtual NUMA: the memory of each node, in blocks of 1 MB.
    :ivar graphics_console: attach a video console, keyboard included.
    :ivar console_pipe: the host's named pipe of the serial console, such as ``\\.\pipe\vmpipe``.
    :ivar guest_state_file: the VMGS file: under ``boot_files_path`` for Linux, a path for Windows.
    :ivar security_policy: the security policy, base64. Never shown.
    :ivar security_policy_enabled: there is a policy to apply on real SNP hardware.
    :ivar security_policy_enforcer: which enforcer the guest uses.
    :ivar uvm_reference_info_file: the file with the signed measurements of the VM: under ``boot_files_path``
        for Linux, a path for Windows.
    :ivar uvm_hash_envelope_reference_info_file: the file with those signed as a hash envelope, likewise.
    :ivar bundle_directory: the VM's own directory on the host, for the files that are made for it; a VM that
        boots from ``guest_state_file`` needs it.
    :ivar additional_json: a JSON object (text or mapping), merged recursively over the finished document;
        what it says wins, lists are replaced. Never shown.
    :ivar template: the VM is to be saved with :meth:`uvm.UtilityVM.save_template`: what it shares can be.
    :ivar clone_of: the template that the VM is made from. The other options are those of the template, but
        for ``id``, ``additional_json``, ``console_pipe``, ``survive_process``, ``revoke_released_files``.
    :ivar scratch_directory: the clone's own directory on the host, for its own disks: copies, or overlays.
    :ivar survive_process: keep the VM running when the last handle to it closes.
    :ivar revoke_released_files: remove a released file from its VSMB share's allowed files at once.
    :ivar external_guest_connection: connect to the guest ourselves; False: through HCS.
    """

    id: str = field(default="", metadata=go("ID", text))
    owner: str = field(default="uvm", metadata=go("Owner", text))
    memory_mb: int = field(default=1024, metadata=go("MemorySizeInMB", whole(U64 - 1)))
    low_mmio_gap_mb: int = field(default=0, metadata=go("LowMMIOGapInMB", whole(U64)))
    high_mmio_base_mb: int = field(default=0, metadata=go("HighMMIOBaseInMB", whole(U64)))
    high_mmio_gap_mb: int = field(default=0, metadata=go("HighMMIOGapInMB", whole(U64)))
    allow_overcommit: bool = field(default=True, metadata=go("AllowOvercommit", flag))
    fully_physically_backed: bool = field(default=False, metadata=go("FullyPhysicallyBacked", flag))
    deferred_commit: bool = field(default=False, metadata=go("EnableDeferredCommit", flag))
    processors: int | None = field(default=None, metadata=go("ProcessorCount", whole(I32)))
    processor_limit: int = field(default=0, metadata=go("ProcessorLimit", whole(MAX_PROCESSOR_LIMIT)))
    processor_weight: int = field(default=0, metadata=go("ProcessorWeight", whole(MAX_PROCESSOR_WEIGHT)))
    storage_qos_iops_max: int = field(default=0, metadata=go("StorageQoSIopsMaximum", whole(I32)))
    storage_qos_bandwidth_max: int = field(default=0, metadata=go("StorageQoSBandwidthMaximum", whole(I32)))
    disable_compartment_namespace: bool = field(
        default=False, metadata=go("DisableCompartmentNamespace", flag)
    )
    cpu_group_id: str = field(default="", converter=plain_guid, metadata=go("CPUGroupID", text))
    resource_partition_id: str = field(
        default="", converter=plain_guid, metadata=go("ResourcePartitionID", optional_guid)
    )
    network_config_proxy: str = field(default="", converter=path, metadata=go("NetworkConfigProxy", text))
    process_dump_location: str = field(default="", metadata=go("ProcessDumpLocation", text))
    no_writable_file_shares: bool = field(default=False, metadata=go("NoWritableFileShares", flag))
    scsi_controllers: int = field(default=1, metadata=go("SCSIControllerCount", whole(MAX_SCSI_CONTROLLERS)))
    dump_directory: str = field(default="", converter=path, metadata=go("DumpDirectoryPath", text))
    hvsocket_services: Mapping[str, HvSocketService] = field(
        factory=dict,
        converter=_services,
        hash=False,
        metadata=go("AdditionalHyperVConfig", items(guid, instance(HvSocketService))),
    )
    numa_max_memory_per_node_mb: int = field(default=0, metadata=go("MaxMemorySizePerNumaNode", whole(U64)))
    numa_max_processors_per_node: int = field(default=0, metadata=go("MaxProcessorsPerNumaNode", whole(U32)))
    numa_preferred_physical_nodes: tuple[int, ...] = field(
        default=(), converter=items_or_value, metadata=go("PreferredPhysicalNumaNodes", each(whole(U32)))
    )
    numa_mapped_physical_nodes: tuple[int, ...] = field(
        default=(), converter=items_or_value, metadata=go("NumaMappedPhysicalNodes", each(whole(U32)))
    )
    numa_processor_counts: tuple[int, ...] = field(
        default=(), converter=items_or_value, metadata=go("NumaProcessorCounts", each(whole(U32)))
    )
    numa_memory_blocks: tuple[int, ...] = field(
        default=(), converter=items_or_value, metadata=go("NumaMemoryBlocksCounts", each(whole(U64)))
    )
    graphics_console: bool = field(default=False, metadata=go("EnableGraphicsConsole", flag))
    console_pipe: str = field(default="", converter=path, metadata=go("ConsolePipe", text))
    guest_state_file: str = field(default="", converter=path, metadata=go("GuestStateFilePath", text))
    security_policy: str = field(
        default="", converter=without_mark, repr=False, metadata=go("SecurityPolicy", text)
    )
    security_policy_enabled: bool = field(default=False, metadata=go("SecurityPolicyEnabled", flag))
    security_policy_enforcer: str = field(default="", metadata=go("SecurityPolicyEnforcer", text))
    uvm_reference_info_file: str = field(
        default="", converter=path, metadata=go("UVMReferenceInfoFile", text)
    )
    uvm_hash_envelope_reference_info_file: str = field(
        default="", converter=path, metadata=go("UVMHashEnvelopeReferenceInfoFile", text)
    )
    bundle_directory: str = field(default="", converter=path, metadata=go("BundleDirectory", text))
    additional_json: str | None = field(
        default=None, converter=_json_text, repr=False, metadata=go(None, text)
    )
    template: bool = field(default=False, metadata=go(None, flag))
    clone_of: Template | None = field(default=None, hash=False, metadata=go(None, instance(Template)))
    scratch_directory: str = field(default="", converter=path, metadata=go(None, text))
    survive_process: bool = field(default=False, metadata=go(None, flag))
    revoke_released_files: bool = field(default=False, metadata=go(None, flag))
    external_guest_connection: bool = field(default=True, metadata=go(None, flag))

    __repr__ = call_of

    def __attrs_post_init__(self) -> None:
        check_fields(self)
        self._check_together()

    def check_effects(self) -> None:
        """Check that each option that differs from its default has an effect. The creation of a VM checks it.

        Documents are built without this check, as hcsshim builds them.

        :raises OptionsError: an option has no effect beside the others, or is 0 and has no default.
        """
        given = check_fields(self)
        for name in ("memory_mb", "processors", "vpmem_size_bytes"):
            if given.get(name) == 0:
                raise OptionsError(f"{name} is 0, and no platform chooses another value; leave it out")
        for names, why in self._without_effect(given):
            if idle := [name for name in names if name in given]:
                raise OptionsError(f"{', '.join(idle)}: no effect {why}; leave it out")

    def _without_effect(self, given: Mapping[str, Any]) -> Iterator[tuple[Sequence[str], str]]:
        """Yield options that have no effect beside those that are given, and why."""
        if not self.security_policy_enabled:
            yield _POLICY, "without security_policy_enabled"
        if self.clone_of is None:
            yield ("scratch_directory",), "without clone_of"
        if not given.get("numa_max_processors_per_node"):
            yield ("numa_max_memory_per_node_mb",), "without numa_max_processors_per_node"
            if not given.get("numa_mapped_physical_nodes"):
                yield NUMA[2:], "without numa_mapped_physical_nodes or numa_max_processors_per_node"
        else:
            yield NUMA[3:], "with numa_max_processors_per_node, for implicit virtual NUMA"

    def _check_together(self) -> None:
        """Check what depends on several options."""
        if self.deferred_commit and not self.allow_overcommit:
            raise OptionsError(
                "deferred_commit needs virtual memory, but allow_overcommit=False asks for physical memory"
            )
        self._check_template()
        if self.resource_partition_id and self.cpu_group_id:
            raise OptionsError("a VM is in a resource partition or in a CPU group, not in both")
        if self.has_numa:
            self._check_numa()

    def _check_guest_of_template(self, os: GuestOS) -> None:
        """Refuse a template that has another kind of guest."""
        if self.clone_of is not None and self.clone_of.document.os != os:
            raise OptionsError(
                f"clone_of: the guest of {self.clone_of.vm_id} is a {self.clone_of.document.os.capitalize()} "
                f"one, and clones of it have one too, not a {os.capitalize()} guest"
            )

    def _check_template(self) -> None:
        """Check what a template, or a clone, has to be."""
        if self.clone_of is not None:
            if self.template:
                raise OptionsError("template: a clone is made from a template, and cannot be one")
            template = self.clone_of.document
            if not self.scratch_directory and any(
                not disk.read_only for disk in (*template.boot_disks, *template.disks)
            ):
                raise OptionsError("clone_of needs scratch_directory, for the disks of the clone")
            if different := differences(self, self.clone_of):
                raise OptionsError(
                    f"{', '.join(different)}: a clone of {self.clone_of.vm_id} has the options of its "
                    "template; state them alike"
                )
        elif self.template:
            if self.fully_physically_backed:
                raise OptionsError("fully_physically_backed: the memory of a template cannot be so")
            if self.security_policy_enabled:
                raise OptionsError("security_policy_enabled: a confidential VM cannot be saved as a template")
        if (self.template or self.clone_of is not None) and not self.external_guest_connection:
            raise OptionsError(
                "external_guest_connection=False: HCS would keep its connection to the guest, which a "
                "template and its clones must not have"
            )

    @property
    def has_numa(self) -> bool:
        """Whether the VM gets virtual NUMA nodes."""
        return self.numa_max_processors_per_node > 0 or bool(self.numa_mapped_physical_nodes)

    def _check_numa(self) -> None:
        if self.allow_overcommit:
            raise OptionsError("virtual NUMA needs physical memory: allow_overcommit must be False")
        if not self.numa_max_processors_per_node:
            self._check_explicit_numa()
        elif not self.numa_max_memory_per_node_mb:
            raise OptionsError("numa_max_processors_per_node needs numa_max_memory_per_node_mb as well")

    def _check_explicit_numa(self) -> None:
        physical, processors = self.numa_mapped_physical_nodes, self.numa_processor_counts
        blocks = self.numa_memory_blocks
        if not len(physical) == len(processors) == len(blocks):
            raise OptionsError(
                "numa_mapped_physical_nodes, numa_processor_counts and numa_memory_blocks must be"
                f" of one length, not {len(physical)}, {len(processors)} and {len(blocks)}"
            )
        if len(physical) > _MAX_VIRTUAL_NODES:
            raise OptionsError(f"{len(physical)} virtual NUMA nodes; {_MAX_VIRTUAL_NODES} are allowed")
        wild = [node == _ANY_PHYSICAL_NODE for node in physical]
        if any(wild) != all(wild):
            raise OptionsError(f"numa_mapped_physical_nodes mixes {_ANY_PHYSICAL_NODE} (any) with others")
        too_high = [n for n in physical if n >= _MAX_PHYSICAL_NODES and n != _ANY_PHYSICAL_NODE]
        if too_high:
            raise OptionsError(f"physical NUMA node {too_high[0]}: below {_MAX_PHYSICAL_NODES} is allowed")
        if 0 in blocks:
            raise OptionsError("a virtual NUMA node without memory is not allowed")
        if not any(processors):
            raise OptionsError("virtual NUMA nodes with memory, but no processors, are not allowed")


def together(options: Mapping[str, Any], forced: Mapping[str, Any], why: str) -> dict[str, Any]:
    """Return options with others that belong to them.

    :raises OptionsError: one that belongs to them is given another value.
    """
    for name, value in forced.items():
        if name in options and options[name] != value:
            raise OptionsError(f"{name} is {value!r} {why}, not {options[name]!r}; leave it out")
    return {**options, **forced}


def check_policy(policy: str) -> None:
    """Check that there is a security policy.

    :raises OptionsError: there is none, or it is not base64.
    """
    if not policy:
        raise OptionsError("security_policy is empty: a confidential VM needs one, as base64")
    decode_policy(policy)


def decode_policy(policy: str) -> bytes:
    """Decode a security policy; the error does not quote it.

    :raises OptionsError: it is not base64.
    """
    try:
        # Line breaks are allowed, as Go's decoder allows them.
        return base64.b64decode(policy.replace("\r", "").replace("\n", ""), validate=True)
    except (binascii.Error, ValueError):
        raise OptionsError("security_policy is not base64") from None
