"""The addresses of the host's services for guests: vsock ports and Hyper-V socket services.

A Linux guest connects to vsock ports, a Windows guest to Hyper-V services; Hyper-V maps each port to a
service.
"""

from __future__ import annotations

from typing import Final

#: The Linux guest's compute service connects to this port (hcsshim's ``LinuxGcsVsockPort``).
LINUX_GCS_PORT: Final = 0x40000000
#: Ports from here on carry the standard streams of processes.
FIRST_STDIO_PORT: Final = LINUX_GCS_PORT + 1
#: A Linux guest's init reads :data:`ENTROPY_BYTES` random bytes from here (hcsshim vmutils/constants.go).
LINUX_ENTROPY_PORT: Final = 1
ENTROPY_BYTES: Final = 512
#: A Linux guest's compute service writes its output here.
LINUX_LOG_PORT: Final = 109

#: The Windows guest's compute service connects to this service.
WINDOWS_GCS_SERVICE: Final = "acef5661-84a1-4e44-856b-6245e69f4620"
#: In a confidential Windows VM a sidecar connects to this one in its place.
WINDOWS_SIDECAR_SERVICE: Final = "ae8da506-a019-4553-a52b-902bc0fa0411"
#: The Windows guest's log forwarding service connects to this service.
WINDOWS_LOG_SERVICE: Final = "172dad59-976d-45f2-8b6c-6d1b13f2ac4d"
#: The host's Hyper-V socket address, for the guest's compute service.
PARENT_ADDRESS: Final = "894cc2d6-9d79-424f-93fe-42969ae6d8d1"

_VSOCK_SUFFIX: Final = "-facb-11e6-bd58-64006a7986d3"


def vsock_service_id(port: int) -> str:
    """Return the Hyper-V service of a vsock port.

    :raises ValueError: the port is not a 32-bit number.
    """
    if not 0 <= port <= 0xFFFFFFFF:
        raise ValueError(f"{port} is no vsock port")
    return f"{port:08x}{_VSOCK_SUFFIX}"


def vsock_port(service_id: str) -> int | None:
    """Return the vsock port of a Hyper-V service; None if it is not one of a port."""
    port, suffix = service_id[:8], service_id[8:]
    if suffix.casefold() != _VSOCK_SUFFIX:
        return None
    try:
        return int(port, 16)
    except ValueError:
        return None
