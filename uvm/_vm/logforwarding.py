"""Requests to the log forwarding service of a Windows guest.

Source: hcsshim internal/uvm/log_wcow.go.
"""

from __future__ import annotations

from uvm._gcs.connection import GuestConnection
from uvm._guest.etw import log_settings
from uvm.options.wcow import WCOWOptions
from uvm.schema.guest import LogForwardServiceRPCRequest
from uvm.schema.json import to_json

_SERVICE = "LogForwardService"


class LogForwarding:
    """The log forwarding service of the guest of one VM."""

    def __init__(self, connection: GuestConnection, options: WCOWOptions) -> None:
        self._connection = connection
        self._options = options

    async def set_sources(self) -> None:
        """Set the ETW providers that the service forwards: those of the options, and the default ones."""
        options = self._options
        # The sidecar of a confidential VM adds the GUIDs itself, to those providers that the policy allows.
        guids = not options.security_policy_enabled
        settings = log_settings(options.log_sources, defaults=options.default_log_sources, guids=guids)
        await self._command("ModifyServiceSettings", settings)

    async def start(self) -> None:
        """Have the service dial the host and forward the events of its providers."""
        await self._command("StartLogForwarding")

    async def stop(self) -> None:
        """Have the service stop forwarding."""
        await self._command("StopLogForwarding")

    async def _command(self, command: str, settings: str = "") -> None:
        request = LogForwardServiceRPCRequest(rpc_type=command, settings=settings)
        await self._connection.modify_service(_SERVICE, to_json(request))
