"""Options from the annotations of an OCI specification, under the names that hcsshim gives them.

How it works
------------

Every annotation of hcsshim 0.15 and 0.8.16 is in one of these tables: :data:`OF_VMS` has the option that it
sets, by the guest's operating system; :data:`READ_ELSEWHERE` what reads it, such as a container;
:data:`NOT_SUPPORTED` why it is refused. What is in none of them, under a prefix of hcsshim's, is reported as
unknown. One that has no effect on the kind of guest is reported too: hcsshim ignores both.

The values become options, with what belongs to them: those of a VM with a security policy are made by
``confidential``. A value that cannot be read, or that does not fit the policy, is refused under the name of
its annotation. hcsshim warns of the first and goes on without it, and changes the second.

Source: hcsshim pkg/annotations, internal/annotations and internal/oci/uvm.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar, overload

from attrs import frozen

from uvm._arguments import kind_of
from uvm._checks import U64, checked, choice, similar
from uvm._log import Log
from uvm._names import GuestOS
from uvm._repr import printed
from uvm.errors import OptionsError
from uvm.options import annotationvalues as values
from uvm.options.annotationvalues import Reader
from uvm.options.common import together
from uvm.options.lcow import GCS_COMMAND, MAX_VPMEM_DEVICES, LCOWOptions
from uvm.options.wcow import BlockCIMBootFiles, WCOWOptions

T = TypeVar("T", LCOWOptions, WCOWOptions)

_log = Log("uvm")

_CONTAINER: Final = "io.microsoft.container."
_VM: Final = "io.microsoft.virtualmachine."
_TOPOLOGY: Final = "io.microsoft.virtualmachine.computetopology."
_PREFIXES: Final = ("io.microsoft.", "microsoft.com/")

#: Followed by the GUID of a Hyper-V socket service.
SERVICE_TABLE: Final = f"{_VM}hv-socket.service-table."
UNSAFE_OPERATIONS: Final = "io.microsoft.disable-unsafe-operations"
DISABLE_GMSA: Final = f"{_CONTAINER}wcow.gmsa.disable"
HOST_PROCESS: Final = "microsoft.com/hostprocess-container"
DISABLE_HOST_PROCESS: Final = "microsoft.com/disable-hostprocess-container"
_NO_WRITABLE_SHARES: Final = f"{_VM}fileshares.disablewritable"
_NO_DIRECT_MAP: Final = f"{_VM}wcow.virtualSMB.nodirectmap"
#: An annotation, and those that it stands for, of the same value.
EXPANSIONS: Final = {
    UNSAFE_OPERATIONS: (DISABLE_GMSA, _NO_WRITABLE_SHARES, _NO_DIRECT_MAP, DISABLE_HOST_PROCESS)
}


@frozen
class _Sets:
    """What an annotation sets: an option, or what stands for several."""

    option: str
    read: Reader


_Table = dict[str, dict[GuestOS, _Sets]]


def _of(os: tuple[GuestOS, ...], prefix: str, entries: Mapping[str, tuple[str, Reader]]) -> _Table:
    return {prefix + name: dict.fromkeys(os, _Sets(*entry)) for name, entry in entries.items()}


_BOTH: Final = ("linux", "windows")
_I32, _U32, _U64 = values.i32, values.u32, values.u64

#: By annotation, what it sets of a VM with each kind of guest.
OF_VMS: Final[_Table] = {
    **_of(
        _BOTH,
        _TOPOLOGY,
        {
            "memory.sizeinmb": ("memory_mb", values.whole(U64 - 1)),
            "memory.lowmmiogapinmb": ("low_mmio_gap_mb", _U64),
            "memory.highmmiobaseinmb": ("high_mmio_base_mb", _U64),
            "memory.highmmiogapinmb": ("high_mmio_gap_mb", _U64),
            "memory.allowovercommit": ("allow_overcommit", values.flag),
            "memory.enabledeferredcommit": ("deferred_commit", values.flag),
            "processor.count": ("processors", _I32),
            "processor.limit": ("processor_limit", _I32),
            "processor.weight": ("processor_weight", _I32),
            "processor.numa.max-processors-per-node": ("numa_max_processors_per_node", _U32),
            "processor.numa.max-size-per-node": ("numa_max_memory_per_node_mb", _U64),
            "numa.preferred-physical-nodes": ("numa_preferred_physical_nodes", values.numbers(_U32)),
            "numa.mapped-physical-nodes": ("numa_mapped_physical_nodes", values.numbers(_U32)),
            "numa.count-of-processors": ("numa_processor_counts", values.numbers(_U32)),
            "numa.count-of-memory-blocks": ("numa_memory_blocks", values.numbers(_U64)),
        },
    ),
    **_of(
        _BOTH,
        _VM,
        {
            "storageqos.bandwidthmaximum": ("storage_qos_bandwidth_max", _I32),
            "storageqos.iopsmaximum": ("storage_qos_iops_max", _I32),
            "cpugroup.id": ("cpu_group_id", values.text),
            "resource-partition-id": ("resource_partition_id", values.identifier),
            "fullyphysicallybacked": ("fully_physically_backed", values.flag),
            "fileshares.disablewritable": ("no_writable_file_shares", values.flag),
            "console.pipe": ("console_pipe", values.text),
            "useexternalgcsbridge": ("external_guest_connection", values.flag),
            "uvm-hash-envelope-reference-info-file": ("uvm_hash_envelope_reference_info_file", values.text),
            "no_security_hardware": ("security_hardware", values.inverted),
        },
    ),
    **_of(
        _BOTH,
        "io.microsoft.",
        {
            "network.ncproxy": ("network_config_proxy", values.text),
            "container.processdumplocation": ("process_dump_location", values.text),
        },
    ),
    f"{_VM}bootfilesrootpath": {
        "linux": _Sets("boot_files_path", values.text),
        "windows": _Sets("boot_files_root_path", values.text),
    },
    **_of(
        ("linux",),
        _VM,
        {
            "computetopology.memory.enablecolddiscardhint": ("cold_discard_hint", values.flag),
            "devices.virtualpmem.maximumcount": ("vpmem_count", values.whole(MAX_VPMEM_DEVICES)),
            "devices.virtualpmem.maximumsizebytes": ("vpmem_size_bytes", _U64),
            "storage.scratch.encrypted": ("scratch_encryption", values.flag),
        },
    ),
    **_of(
        ("linux",),
        f"{_VM}lcow.",
        {
            "bootfilesrootpath": ("boot_files_path", values.text),
            "preferredrootfstype": ("rootfs_type", values.choice("initrd", "vhd")),
            "kerneldirectboot": ("kernel_direct", values.flag),
            "kernelbootoptions": ("kernel_boot_options", values.text),
            "vpcienabled": ("vpci_enabled", values.flag),
            "vpmem.nomultimapping": ("vpmem_multi_mapping", values.inverted),
            "timesync.disable": ("disable_time_sync", values.flag),
            "writable-overlay-directories": ("writable_overlay_dirs", values.flag),
            "extra-vsock-ports": ("extra_vsock_ports", values.numbers(_U32)),
            "extra-exec-command-args": ("exec_arguments", values.text),
            "network.policybasedrouting": ("policy_based_routing", values.flag),
            "dmverity-mode": ("dm_verity_mode", values.flag),
            "dmverity-create-args": ("dm_verity_create_args", values.text),
            "dmverity-rootfs-vhd": ("dm_verity_rootfs_vhd", values.text),
            "gueststatefile": ("guest_state_file", values.text),
            "hcl-enabled": ("hcl_enabled", values.flag),
            "securitypolicy": ("security_policy", values.text),
            "enforcer": ("security_policy_enforcer", values.text),
            "uvm-reference-info-file": ("uvm_reference_info_file", values.text),
        },
    ),
    **_of(
        ("windows",),
        _VM,
        {
            "dump-directory-path": ("dump_directory", values.text),
            "disablecompartmentnamespace": ("disable_compartment_namespace", values.flag),
            "forwardlogs.sources": ("log_sources", values.text),
            "forwardlogs.enable": ("log_forwarding", values.flag),
            "forwardlogs.defaultsources.enable": ("default_log_sources", values.flag),
            "saveastemplate": ("template", values.flag),
        },
    ),
    **_of(
        ("windows",),
        f"{_VM}wcow.",
        {
            "virtualSMB.nodirectmap": ("no_direct_map", values.flag),
            "timezone.noinherit": ("inherit_time_zone", values.inverted),
            "additional-reg-keys": ("registry_values", values.registry_values),
            "gueststatefile": ("guest_state_file", values.text),
            "isolation_type": ("isolation_type", values.text),
            "no_secure_boot": ("disable_secure_boot", values.flag),
            "writable_efi": ("writable_efi", values.flag),
            "securitypolicy": ("security_policy", values.text),
            "enforcer": ("security_policy_enforcer", values.text),
            "uvm-reference-info-file": ("uvm_reference_info_file", values.text),
        },
    ),
    **_of(
        ("windows",),
        "io.microsoft.wcow.",
        {
            "debug": ("debug_mode", values.flag),
            "debug_data_path": ("debug_data_path", values.text),
        },
    ),
}
#: Zero is "not given" for these, as in hcsshim.
_ABOVE_ZERO: Final = (
    "memory_mb",
    "processors",
    "processor_limit",
    "processor_weight",
    "storage_qos_bandwidth_max",
    "storage_qos_iops_max",
)

_ITS_CONTAINER: Final = "container_annotations: the container of the specification"
_ITS_GUEST: Final = "the guest, in the specification of the container"
_ITS_POD: Final = "Pod: which container of which pod the specification is"
#: What reads the annotations that say nothing of a VM.
READ_ELSEWHERE: Final = {
    **dict.fromkeys(
        (
            *(f"{_CONTAINER}{name}" for name in ("memory.sizeinmb", "storage.qos.bandwidthmaximum")),
            *(f"{_CONTAINER}{name}" for name in ("storage.qos.iopsmaximum", "wcow.deviceextensions")),
            *(f"{_CONTAINER}processor.{name}" for name in ("count", "limit", "weight")),
            f"{_CONTAINER}wcow.test-registry-annotation",
            "io.microsoft.wcow.processdumptype",
            "io.microsoft.wcow.processdumpcount",
            DISABLE_GMSA,
            HOST_PROCESS,
            DISABLE_HOST_PROCESS,
            "microsoft.com/hostprocess-inherit-user",
            "microsoft.com/hostprocess-rootfs-location",
        ),
        _ITS_CONTAINER,
    ),
    **dict.fromkeys(
        (
            f"{_CONTAINER}lcow.tee-log-path",
            f"{_CONTAINER}lcow.tee-log-dir-mount",
            f"{_CONTAINER}gpu.capabilities",
            "io.microsoft.lcow.rlimitcore",
            "io.microsoft.lcow.shm.size-kb",
            f"{_VM}lcow.privileged",
            f"{_VM}lcow.hostnetwork",
            f"{_VM}lcow.securitypolicy.env",
            f"{_VM}wcow.securitypolicy.env",
            "io.microsoft.cri.skip-pod-networking",
            "io.microsoft.cri.virtual-pod-id",
        ),
        _ITS_GUEST,
    ),
    "io.kubernetes.cri.container-type": _ITS_POD,
    "io.kubernetes.cri.sandbox-id": _ITS_POD,
    "io.microsoft.network.ncproxy.containerid": "vm.network_setup, as its container_id",
    UNSAFE_OPERATIONS: "expanded_annotations: it stands for others",
    f"{_VM}lcow.amd-certificate": "nothing, in hcsshim neither",
    f"{_VM}wcow.amd-certificate": "nothing, in hcsshim neither",
    "io.microsoft.cri.tenant-sandbox-id": "nothing, in hcsshim neither",
}
_NO_DRIVERS: Final = "drivers are not installed in guests; have them in the image of the guest"
#: Why an annotation is refused, unless it is false or empty.
NOT_SUPPORTED: Final = {
    f"{_VM}kerneldrivers": _NO_DRIVERS,
    "io.microsoft.assigneddevice.kerneldrivers": _NO_DRIVERS,
    "io.microsoft.lcow.gpuvhdpath": "a disk with GPU drivers is not supported, by hcsshim 0.15 neither",
    f"{_VM}templateid": "a template is not found by its id; pass clone_of",
    "io.microsoft.migration.support-enabled": "live migration is not supported",
    "io.microsoft.migration.source-container-id": "live migration is not supported",
}


@overload
def options_from_annotations(
    os: Literal["linux"],
    annotations: Mapping[str, str],
    *,
    resources: Mapping[str, Any] | None = None,
    **options: Any,
) -> LCOWOptions: ...
@overload
def options_from_annotations(
    os: Literal["windows"],
    annotations: Mapping[str, str],
    *,
    resources: Mapping[str, Any] | None = None,
    **options: Any,
) -> WCOWOptions: ...
@overload
def options_from_annotations(
    os: str,
    annotations: Mapping[str, str],
    *,
    resources: Mapping[str, Any] | None = None,
    **options: Any,
) -> LCOWOptions | WCOWOptions: ...
def options_from_annotations(
    os: str,
    annotations: Mapping[str, str],
    *,
    resources: Mapping[str, Any] | None = None,
    **options: Any,
) -> LCOWOptions | WCOWOptions:
    """Return the options of the VM of a pod, from the annotations of its specification.

    Annotations win over `resources`, and these over `options`. One with a security policy has the options of
    :meth:`LCOWOptions.confidential` or :meth:`WCOWOptions.confidential`. Unknown annotations under hcsshim's
    prefixes, and those without effect on such a guest, are reported to the logger ``uvm``.

    :param os: the guest's operating system, ``"linux"`` or ``"windows"``.
    :param resources: ``windows.resources`` of the specification.
    :param options: other options, of the host that the VM runs on, such as ``id``, ``boot_files`` and
        ``bundle_directory``. What only a VM with a policy takes (``bundle_directory``, ``scratch_vhd_path``),
        or only one without (``boot_files`` other than block CIMs), is left out where it does not apply.
    :raises OptionsError: a value is not written as it has to be, contradicts another, is not supported, or
        has no effect beside the others; the annotation is named.
    """
    checked(os, choice("linux", "windows"), "the guest's operating system")
    guest: GuestOS = "linux" if os == "linux" else "windows"
    given = values.checked_annotations(annotations)
    _report(guest, given)
    found, sources = _read(guest, expanded_annotations(given))
    _refuse_unsupported(given)
    stated = _of_resources(resources)
    if found.get("security_policy") and guest == "windows":
        # Its memory has a default of its own.
        stated.pop("memory_mb", None)
    try:
        made = {**options, **stated, **found}
        return _linux(made) if guest == "linux" else _windows(made)
    except OptionsError as error:
        raise _naming(error, sources) from None


def expanded_annotations(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return annotations with those that some of them stand for.

    ``io.microsoft.disable-unsafe-operations`` stands for those that deny group managed service accounts,
    writable shares, direct mapping of SMB shares, and host process containers.

    :raises OptionsError: one of these says something else; or a host process container is asked for, and
        denied.
    """
    given = values.checked_annotations(annotations)
    for name, others in EXPANSIONS.items():
        if (value := given.get(name)) is None:
            continue
        for other in others:
            if given.setdefault(other, value) != value:
                raise OptionsError(
                    f"annotation {name} is {value!r}, and stands for {other}, which is {given[other]!r}"
                )
    both = (HOST_PROCESS, DISABLE_HOST_PROCESS)
    if all(values.read(name, values.flag, given.get(name, "false")) for name in both):
        raise OptionsError(f"annotations {HOST_PROCESS} and {DISABLE_HOST_PROCESS} are both true")
    return given


def unknown_annotations(annotations: Mapping[str, str]) -> list[str]:
    """Return the names of annotations under hcsshim's prefixes that hcsshim does not know.

    :raises OptionsError: they are no mapping of strings to strings.
    """
    known = {*OF_VMS, *READ_ELSEWHERE, *NOT_SUPPORTED}
    given = values.checked_annotations(annotations)
    return [
        name
        for name in given
        if name.startswith(_PREFIXES) and name not in known and not name.startswith(SERVICE_TABLE)
    ]


def _report(os: GuestOS, given: Mapping[str, str]) -> None:
    unknown = unknown_annotations(given)
    for name in unknown:
        meant = similar(name, [*OF_VMS, *READ_ELSEWHERE])
        _log.warning(
            None, "annotation %s: there is none of that name%s", name, meant and f"; was {meant} meant?"
        )
    for name in given:
        if name in OF_VMS and os not in OF_VMS[name]:
            _log.warning(None, "annotation %s: no effect on a %s guest", name, os.capitalize())


def _read(os: GuestOS, given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what annotations set, by options, and the annotation of each."""
    found, sources, services = dict[str, Any](), dict[str, str](), dict[str, Any]()
    for name, text in given.items():
        if name.startswith(SERVICE_TABLE):
            service = values.read(name, values.identifier, name.removeprefix(SERVICE_TABLE))
            services[service] = values.read(name, values.service, text)
            sources["hvsocket_services"] = name
        elif (sets := OF_VMS.get(name, {}).get(os)) is not None:
            value = values.read(name, sets.read, text)
            if value == 0 and sets.option in _ABOVE_ZERO:
                continue
            if found.setdefault(sets.option, value) != value:
                raise OptionsError(f"annotations {sources[sets.option]} and {name} contradict each other")
            sources[sets.option] = name
    if services:
        found["hvsocket_services"] = services
    return found, sources


def _refuse_unsupported(given: Mapping[str, str]) -> None:
    for name, why in NOT_SUPPORTED.items():
        if given.get(name, "").lower() not in ("", "0", "f", "false"):
            raise OptionsError(f"annotation {name}: {why}")


def _naming(error: OptionsError, sources: Mapping[str, str]) -> OptionsError:
    """Return an error that says which annotations set the options that it names."""
    text = str(error)
    named = [f"{option} is {name}" for option, name in sources.items() if re.search(rf"\b{option}\b", text)]
    return OptionsError(f"{text} (annotations: {'; '.join(named)})" if named else text)


def _of_resources(resources: object) -> dict[str, Any]:
    """Return what the resources of a Windows container say of its VM."""
    if resources is None:
        return {}
    if not isinstance(resources, Mapping):
        raise OptionsError(f"resources are a mapping, not {kind_of(resources)}")
    found = {
        option: _number(resources, path) // unit
        for option, (path, unit) in {
            "memory_mb": ("memory.limit", 1 << 20),
            "processors": ("cpu.count", 1),
            "processor_limit": ("cpu.maximum", 1),
            "processor_weight": ("cpu.shares", 1),
            "storage_qos_bandwidth_max": ("storage.bps", 1),
            "storage_qos_iops_max": ("storage.iops", 1),
        }.items()
    }
    return {option: value for option, value in found.items() if value}


def _number(resources: Mapping[str, Any], path: str) -> int:
    """Return a number of the resources; 0 if there is none."""
    value: Any = resources
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise OptionsError(f"resources: {path} is {printed(value)}, not a whole number from 0 on")
    return value or 0


def _linux(options: dict[str, Any]) -> LCOWOptions:
    arguments = options.pop("exec_arguments", "")
    if arguments:
        command = GCS_COMMAND.format(options.pop("guest_log_level", "info"))
        options["exec_command_line"] = f"{options.get('exec_command_line') or command} {arguments}"
    if options.get("rootfs_type") in _ROOT_FILES:
        options.setdefault("rootfs_file", _ROOT_FILES[options["rootfs_type"]])
    if options.get("kernel_direct") is False:
        options.setdefault("kernel_file", "kernel")
    if options.get("fully_physically_backed"):
        forced = {"allow_overcommit": False, "vpmem_count": 0}
        options = together(options, forced, "with fully_physically_backed")
    options.pop("scratch_vhd_path", None)
    if not options.get("security_policy"):
        options.pop("security_hardware", None)
        if not options.get("guest_state_file"):
            options.pop("bundle_directory", None)
        return _effective(LCOWOptions(**options))
    hardware = options.get("security_hardware", True)
    if not hardware and not options.get("guest_state_file"):
        options.pop("bundle_directory", None)
    return LCOWOptions.confidential(options.pop("security_policy"), **options)


#: The root file systems by their types.
_ROOT_FILES: Final = {"initrd": "initrd.img", "vhd": "rootfs.vhd"}


def _windows(options: dict[str, Any]) -> WCOWOptions:
    if options.get("fully_physically_backed"):
        options = together(options, {"allow_overcommit": False}, "with fully_physically_backed")
    policy = options.pop("security_policy", "")
    if not policy:
        for name in ("security_hardware", "bundle_directory", "scratch_vhd_path"):
            options.pop(name, None)
        return _effective(WCOWOptions(**options))
    if not isinstance(options.get("boot_files"), BlockCIMBootFiles):
        options.pop("boot_files", None)
    elif options["boot_files"].scratch_vhd_path:
        options.pop("scratch_vhd_path", None)
    return WCOWOptions.confidential(policy, **options)


def _effective(made: T) -> T:
    made.check_effects()
    return made
