"""What a container's update in OCI terms sends, to each kind of guest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from uvm._guest.access import GuestAccess
from uvm._guest.resources import read_resources, windows_container_resources
from uvm._guest.updates import Setting, Settings
from uvm.backend import JSON
from uvm.errors import NotSupportedError
from uvm.schema.common import V20H2
from uvm.schema.guest import RESOURCE_CONTAINER_CONSTRAINTS, LCOWContainerConstraints
from uvm.schema.json import to_json
from uvm.schema.requests import (
    CONTAINER_MEMORY,
    CONTAINER_PROCESSOR,
    UPDATE,
    ModificationRequest,
    ModifySettingRequest,
)

#: What of a Windows container's processors is a setting of its own, though one path has them all.
_OF_PROCESSOR: Final = ("Count", "Maximum", "Weight")


def constraints(resources: object) -> JSON:
    """Return the request that changes the resources of a Linux container. Errors as of read_resources."""
    settings = LCOWContainerConstraints(linux=read_resources(resources, "linux"))
    return to_json(
        ModificationRequest(
            request_type=UPDATE, resource_type=RESOURCE_CONTAINER_CONSTRAINTS, settings=settings
        )
    )


def settings_asked(resources: object, guest: GuestAccess) -> list[Setting]:
    """Return the settings that resources ask for of a Windows container.

    :raises OptionsError: as windows_container_resources.
    :raises NotSupportedError: the host is too old.
    """
    asked = windows_container_resources(resources, guest.processors)
    made = [] if asked.memory_mb is None else [Setting(CONTAINER_MEMORY, asked.memory_mb)]
    if asked.processor is not None:
        if 0 < guest.build < V20H2:
            raise NotSupportedError(
                f"changing the processors of a container needs Windows build {V20H2}; the host has "
                f"{guest.build}"
            )
        name, value = asked.processor
        made.append(Setting(f"{CONTAINER_PROCESSOR}/{name}", value))
    return made


def settings_of(config: JSON, modify: Callable[[JSON], Awaitable[None]]) -> Settings:
    """Return the settings in force of a Windows container.

    :param config: its document.
    :param modify: has a request carried out on it.
    """
    container = config.get("Container") or {}
    memory, processor = container.get("Memory") or {}, container.get("Processor") or {}
    created: dict[str, Any] = {CONTAINER_MEMORY: memory.get("SizeInMB") or None}
    created |= {f"{CONTAINER_PROCESSOR}/{name}": processor.get(name) or None for name in _OF_PROCESSOR}
    return Settings(created, partial(_send, modify))


async def _send(modify: Callable[[JSON], Awaitable[None]], setting: Setting) -> None:
    path, _, name = setting.path.rpartition("/")
    request = ModifySettingRequest(resource_path=setting.path, request_type=UPDATE, settings=setting.value)
    if path == CONTAINER_PROCESSOR:
        request = request.replaced(resource_path=path, settings={name: setting.value})
    await modify(to_json(request))
