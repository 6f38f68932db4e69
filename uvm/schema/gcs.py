"""The bodies of the messages between a host and the compute service of a guest, protocol version 4.

Source: hcsshim internal/gcs/prot/protocol.go (the host's side) and internal/guest/prot/protocol.go (the Linux
guest's). Fields that hold a document as JSON text are marked.
"""

from __future__ import annotations

from typing import Any

from uvm.schema.common import Version
from uvm.schema.field import Model, named
from uvm.schema.guest import NULL_GUID, TimeZoneInformation
from uvm.schema.process import ProcessParameters

#: The only version in use.
PROTOCOL_VERSION = 4
#: The container id of the guest itself (hcsshim's ``nullContainerID``).
HOST_CONTAINER_ID = NULL_GUID
#: ``TimeoutInMs`` of a wait without limit.
WAIT_FOREVER_MS = 0xFFFFFFFF


class RequestBase(Model):
    """The fields of every request, and all of some: start, shutdown, dump stacks, ...

    ``container_id`` is :data:`HOST_CONTAINER_ID` for the guest itself.
    """

    container_id: str = named("ContainerId", default="", always=True)
    activity_id: str = named("ActivityId", default=NULL_GUID, always=True)


class GuestErrorRecord(Model):
    """One of the guest's error records; ``result`` is a signed HRESULT."""

    result: int = named("Result", default=0, always=True)
    message: str = named("Message", default="", always=True)
    stack_trace: str = named("StackTrace", default="")
    module_name: str = named("ModuleName", default="", always=True)
    file_name: str = named("FileName", default="", always=True)
    line: int = named("Line", default=0, always=True)
    function_name: str = named("FunctionName", default="")


class ResponseBase(Model):
    """The fields of every response; ``result`` is an HRESULT as a signed 32-bit number, 0 for success."""

    result: int = named("Result", default=0, always=True)
    error_message: str = named("ErrorMessage", default="")
    activity_id: str = named("ActivityId", default="")
    error_records: list[GuestErrorRecord] = named("ErrorRecords", factory=list)


class NegotiateProtocolRequest(RequestBase):
    """The first request on a connection: the versions that the host supports."""

    minimum_version: int = named("MinimumVersion", default=PROTOCOL_VERSION, always=True)
    maximum_version: int = named("MaximumVersion", default=PROTOCOL_VERSION, always=True)


class GcsCapabilities(Model):
    """The capabilities of a guest; ``guest_defined_capabilities`` is an object of the guest's own.

    An empty ``runtime_os_type`` means Windows.
    """

    send_host_create_message: bool = named("SendHostCreateMessage", default=False)
    send_host_start_message: bool = named("SendHostStartMessage", default=False)
    hv_socket_config_on_startup: bool = named("HvSocketConfigOnStartup", default=False)
    send_lifecycle_notifications: bool = named("SendLifecycleNotifications", default=False)
    modify_service_settings_supported: bool = named("ModifyServiceSettingsSupported", default=False)
    supported_schema_versions: list[Version] = named("SupportedSchemaVersions", factory=list)
    runtime_os_type: str = named("RuntimeOsType", default="")
    guest_defined_capabilities: dict[str, Any] = named("GuestDefinedCapabilities", factory=dict)


class NegotiateProtocolResponse(ResponseBase):
    """The version that the guest chose, and its capabilities."""

    version: int = named("Version", default=0)
    capabilities: GcsCapabilities | None = named("Capabilities", default=None)


class UvmConfig(Model):
    """The configuration of the guest itself, sent at a cold start to guests that ask for it."""

    system_type: str = named("SystemType", default="Container", always=True)
    time_zone_information: TimeZoneInformation | None = named("TimeZoneInformation", default=None)


class ContainerCreateRequest(RequestBase):
    """Create a container; ``container_config`` is a document as JSON text.

    The document is a :class:`LinuxHostedSystem`, for Windows a
    :class:`~uvm.schema.container.HostedSystem`, and for the guest itself a :class:`UvmConfig`.
    """

    container_config: str = named("ContainerConfig", default="", always=True, secret=True)


class LinuxHostedSystem(Model):
    """A Linux container: an OCI runtime specification, and its directories in the guest.

    Source: hcsshim internal/hcsoci/hcsdoc_lcow.go.
    """

    schema_version: Version = named("SchemaVersion", factory=lambda: Version(major=2, minor=1), always=True)
    oci_bundle_path: str = named("OciBundlePath", default="", always=True)
    oci_specification: Any = named("OciSpecification", default=None, always=True, secret=True)
    scratch_dir_path: str = named("ScratchDirPath", default="", always=True)


class ContainerNotification(RequestBase):
    """An event reported by the guest: the exit of a container is the only one.

    ``type`` is GracefulExit, ForcedExit, UnexpectedExit, ...; ``result_info`` is a document as JSON text.
    """

    type: str = named("Type", default="", always=True)
    operation: str = named("Operation", default="", always=True)
    result: int = named("Result", default=0, always=True)
    result_info: str = named("ResultInfo", default="")


class LinuxProcessParameters(ProcessParameters):
    """A process of a Linux container; without ``oci_process`` the container's own, first process."""

    oci_process: Any = named("OciProcess", default=None, secret=True)


class StdioRelaySettings(Model):
    """The services (GUIDs) that a Windows guest connects the standard streams of a process to."""

    std_in: str = named("StdIn", default="")
    std_out: str = named("StdOut", default="")
    std_err: str = named("StdErr", default="")


class VsockStdioRelaySettings(Model):
    """The vsock ports that a Linux guest connects the standard streams of a process to."""

    std_in: int = named("StdIn", default=0)
    std_out: int = named("StdOut", default=0)
    std_err: int = named("StdErr", default=0)


class ExecuteProcessSettings(Model):
    """The process (``process_parameters``, as JSON text) and the destinations of its streams."""

    process_parameters: str = named("ProcessParameters", default="", always=True, secret=True)
    stdio_relay_settings: StdioRelaySettings | None = named("StdioRelaySettings", default=None)
    vsock_stdio_relay_settings: VsockStdioRelaySettings | None = named(
        "VsockStdioRelaySettings", default=None
    )


class ExecuteProcessRequest(RequestBase):
    """Run a process in a container, or in the guest itself."""

    settings: ExecuteProcessSettings = named("Settings", factory=ExecuteProcessSettings, always=True)


class ExecuteProcessResponse(ResponseBase):
    """The id of the process in its container."""

    process_id: int = named("ProcessId", default=0, always=True)


class WaitForProcessRequest(RequestBase):
    """Wait for the exit of a process; :data:`WAIT_FOREVER_MS` is no limit."""

    process_id: int = named("ProcessId", default=0, always=True)
    timeout_in_ms: int = named("TimeoutInMs", default=WAIT_FOREVER_MS, always=True)


class WaitForProcessResponse(ResponseBase):
    """The exit code, as an unsigned 32-bit number."""

    exit_code: int = named("ExitCode", default=0, always=True)


class SignalProcessRequest(RequestBase):
    """Signal a process; without ``options`` kill it.

    ``options`` is a :class:`~uvm.schema.process.SignalProcessOptionsLCOW` or
    :class:`~uvm.schema.process.SignalProcessOptionsWCOW`.
    """

    process_id: int = named("ProcessId", default=0, always=True)
    options: Any = named("Options", default=None)


class ResizeConsoleRequest(RequestBase):
    """Change the size of a process's terminal, in characters."""

    process_id: int = named("ProcessId", default=0, always=True)
    height: int = named("Height", default=0, always=True)
    width: int = named("Width", default=0, always=True)


class GetPropertiesRequest(RequestBase):
    """Query properties; ``query`` is a :class:`~uvm.schema.properties.PropertyQuery` as JSON text."""

    query: str = named("Query", default="", always=True)


class GetPropertiesResponse(ResponseBase):
    """The properties, as JSON text."""

    properties: str = named("Properties", default="", always=True)


class ContainerModifySettingsRequest(RequestBase):
    """Change the guest or a container; ``request`` is a ``ModificationRequest``."""

    request: Any = named("Request", default=None, always=True, secret=True)


class ServiceModificationRequest(RequestBase):
    """Change a service of a Windows guest; ``property_type`` names it (``LogForwardService``)."""

    property_type: str = named("PropertyType", default="", always=True)
    settings: Any = named("Settings", default=None, secret=True)


class DumpStacksResponse(ResponseBase):
    """The stacks of the guest's compute service, as text."""

    guest_stacks: str = named("GuestStacks", default="", always=True)
