"""The bodies of the messages between a host and the compute service of a guest, protocol version 4.

Source: hcsshim internal/gcs/prot/protocol.go (the host's side) and internal/guest/prot/protocol.go (the Linux
guest's). Fields that hold a document as JSON text are marked.
"""

from __future__ import annotations

from typing import Any

from uvm.schema.common import Version
from uvm.schema.guest import NULL_GUID, TimeZoneInformation
from uvm.schema.json import Model, Secret, always
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

    container_id: str = always("")
    activity_id: str = always(NULL_GUID)


class GuestErrorRecord(Model):
    """One of the guest's error records; ``result`` is a signed HRESULT."""

    result: int = always(0)
    message: str = always("")
    stack_trace: str = ""
    module_name: str = always("")
    file_name: str = always("")
    line: int = always(0)
    function_name: str = ""


class ResponseBase(Model):
    """The fields of every response; ``result`` is an HRESULT as a signed 32-bit number, 0 for success."""

    result: int = always(0)
    error_message: str = ""
    activity_id: str = ""
    error_records: list[GuestErrorRecord] = []


class NegotiateProtocolRequest(RequestBase):
    """The first request on a connection: the versions that the host supports."""

    minimum_version: int = always(PROTOCOL_VERSION)
    maximum_version: int = always(PROTOCOL_VERSION)


class GcsCapabilities(Model):
    """The capabilities of a guest; ``guest_defined_capabilities`` is an object of the guest's own.

    An empty ``runtime_os_type`` means Windows.
    """

    send_host_create_message: bool = False
    send_host_start_message: bool = False
    hv_socket_config_on_startup: bool = False
    send_lifecycle_notifications: bool = False
    modify_service_settings_supported: bool = False
    supported_schema_versions: list[Version] = []
    runtime_os_type: str = ""
    guest_defined_capabilities: dict[str, Any] = {}


class NegotiateProtocolResponse(ResponseBase):
    """The version that the guest chose, and its capabilities."""

    version: int = 0
    capabilities: GcsCapabilities | None = None


class UvmConfig(Model):
    """The configuration of the guest itself, sent at a cold start to guests that ask for it."""

    system_type: str = always("Container")
    time_zone_information: TimeZoneInformation | None = None


class ContainerCreateRequest(RequestBase):
    """Create a container; ``container_config`` is a document as JSON text.

    The document is a :class:`LinuxHostedSystem`, for Windows a
    :class:`~uvm.schema.container.HostedSystem`, and for the guest itself a :class:`UvmConfig`.
    """

    container_config: Secret[str] = always("")


class LinuxHostedSystem(Model):
    """A Linux container: an OCI runtime specification, and its directories in the guest.

    Source: hcsshim internal/hcsoci/hcsdoc_lcow.go.
    """

    schema_version: Version = always(lambda: Version(major=2, minor=1))
    oci_bundle_path: str = always("")
    oci_specification: Secret[Any] = always(None)
    scratch_dir_path: str = always("")


class ContainerNotification(RequestBase):
    """An event reported by the guest: the exit of a container is the only one.

    ``type`` is GracefulExit, ForcedExit, UnexpectedExit, ...; ``result_info`` is a document as JSON text.
    """

    type: str = always("")
    operation: str = always("")
    result: int = always(0)
    result_info: str = ""


class LinuxProcessParameters(ProcessParameters):
    """A process of a Linux container; without ``oci_process`` the container's own, first process."""

    oci_process: Secret[Any] = None


class StdioRelaySettings(Model):
    """The services (GUIDs) that a Windows guest connects the standard streams of a process to."""

    std_in: str = ""
    std_out: str = ""
    std_err: str = ""


class VsockStdioRelaySettings(Model):
    """The vsock ports that a Linux guest connects the standard streams of a process to."""

    std_in: int = 0
    std_out: int = 0
    std_err: int = 0


class ExecuteProcessSettings(Model):
    """The process (``process_parameters``, as JSON text) and the destinations of its streams."""

    process_parameters: Secret[str] = always("")
    stdio_relay_settings: StdioRelaySettings | None = None
    vsock_stdio_relay_settings: VsockStdioRelaySettings | None = None


class ExecuteProcessRequest(RequestBase):
    """Run a process in a container, or in the guest itself."""

    settings: ExecuteProcessSettings = always(ExecuteProcessSettings)


class ExecuteProcessResponse(ResponseBase):
    """The id of the process in its container."""

    process_id: int = always(0)


class WaitForProcessRequest(RequestBase):
    """Wait for the exit of a process; :data:`WAIT_FOREVER_MS` is no limit."""

    process_id: int = always(0)
    timeout_in_ms: int = always(WAIT_FOREVER_MS)


class WaitForProcessResponse(ResponseBase):
    """The exit code, as an unsigned 32-bit number."""

    exit_code: int = always(0)


class SignalProcessRequest(RequestBase):
    """Signal a process; without ``options`` kill it.

    ``options`` is a :class:`~uvm.schema.process.SignalProcessOptionsLCOW` or
    :class:`~uvm.schema.process.SignalProcessOptionsWCOW`.
    """

    process_id: int = always(0)
    options: Any = None


class ResizeConsoleRequest(RequestBase):
    """Change the size of a process's terminal, in characters."""

    process_id: int = always(0)
    height: int = always(0)
    width: int = always(0)


class GetPropertiesRequest(RequestBase):
    """Query properties; ``query`` is a :class:`~uvm.schema.properties.PropertyQuery` as JSON text."""

    query: str = always("")


class GetPropertiesResponse(ResponseBase):
    """The properties, as JSON text."""

    properties: str = always("")


class ContainerModifySettingsRequest(RequestBase):
    """Change the guest or a container; ``request`` is a ``ModificationRequest``."""

    request: Secret[Any] = always(None)


class UpdateContainerRequest(RequestBase):
    """Change the resources of a container: OCI resources, as JSON text."""

    resources: str = always("")


class ServiceModificationRequest(RequestBase):
    """Change a service of a Windows guest; ``property_type`` names it (``LogForwardService``)."""

    property_type: str = always("")
    settings: Secret[Any] = None


class DumpStacksResponse(ResponseBase):
    """The stacks of the guest's compute service, as text."""

    guest_stacks: str = always("")
