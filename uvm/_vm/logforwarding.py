"""Requests to the log forwarding service of a Windows guest.

Source: hcsshim internal/uvm/log_wcow.go.
"""

from __future__ import annotations

from uvm._gcs.connection import GuestConnection
from uvm._guest.etw import log_settings
from uvm.options import WCOWOptions
from uvm.schema.guest import LogForwardServiceRPCRequest
from uvm.schema.json import to_json

_SERVICE = "LogForwardService"


async def set_log_sources(connection: GuestConnection, options: WCOWOptions) -> None:
    """Set the ETW providers that the service forwards: those of the options, and the default ones."""
    # The sidecar of a confidential VM adds the GUIDs itself, to those providers that the policy allows.
    guids = not options.security_policy_enabled
    settings = log_settings(options.log_sources, defaults=options.default_log_sources, guids=guids)
    await _command(connection, "ModifyServiceSettings", settings)


async def start_log_forwarding(connection: GuestConnection) -> None:
    """Have the service dial the host and forward the events of its providers."""
    await _command(connection, "StartLogForwarding")


async def stop_log_forwarding(connection: GuestConnection) -> None:
    """Have the service stop forwarding."""
    await _command(connection, "StopLogForwarding")


async def _command(connection: GuestConnection, command: str, settings: str = "") -> None:
    request = LogForwardServiceRPCRequest(rpc_type=command, settings=settings)
    await connection.modify_service(_SERVICE, to_json(request))
