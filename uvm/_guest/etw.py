"""What the log forwarding service of a Windows guest is asked to forward: providers of event tracing (ETW).

Source: hcsshim internal/vm/vmutils/etw. The well-known providers are in ``etw_providers.txt`` beside this
module, a GUID and a name in each line.
"""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pkgutil import get_data
from typing import Any, Final

from uvm._names import guid_key
from uvm.errors import OptionsError
from uvm.schema.json import Model, SchemaError, always, dumps, from_json

_ETW: Final = "ETW"

#: What is forwarded unless the user says otherwise, each at the level ``Information``.
DEFAULT_PROVIDERS: Final = (
    "microsoft.windows.hyperv.compute",
    "microsoft-windows-guest-network-service",
    "microsoft.windows.filesystem.cimfs",
    "microsoft.windows.filesystem.unionfs",
    "microsoft-windows-bitlocker-driver",
    "microsoft-windows-bitlocker-api",
    "microsoft.windows.security.keyguard",
    "microsoft.windows.security.keyguard.attestation.verify",
    "microsoft.windows.containers.setup",
    "microsoft.windows.containers.storage",
    "microsoft.windows.containers.library",
    "microsoft.windows.containers.dynamicimage",
    "microsoft.windows.logforwardservice.provider",
)


class _Provider(Model, rename={"name": "providerName", "guid": "providerGuid"}):
    name: str = ""
    guid: str = ""
    level: str = ""
    keywords: str = ""


class _Source(Model, rename="camel"):
    type: str = always("")
    # None, which Go writes as null, is not the same as none of them.
    providers: list[_Provider] | None = always(None)


class _LogConfig(Model, rename="camel"):
    sources: list[_Source] | None = always(None)


class _LogSources(Model):
    log_config: _LogConfig = always(_LogConfig)


def log_settings(sources: str, *, defaults: bool, guids: bool) -> str:
    """Make the settings of the log forwarding service.

    :param sources: the user's, base64 of JSON: ``{"LogConfig": {"sources": [{"type": "ETW", "providers":
        [{"providerName": ..., "providerGuid": ..., "level": ..., "keywords": ...}]}]}}``. The case of field
        names does not matter. Empty for none.
    :param defaults: forward :data:`DEFAULT_PROVIDERS` too; what the user says of one of them counts.
    :param guids: add the GUIDs of well-known providers, as the guest's own service wants it. Without, a GUID
        that says no more than the name is left out, and a name that another GUID stands beside: the
        sidecar of a confidential VM checks names against its policy.
    :return: base64 of JSON.
    :raises OptionsError: the sources cannot be read, or hold a GUID that is none.
    """
    found = [_default_source()] if defaults else []
    if sources:
        found += _read(sources).log_config.sources or []
    merged: dict[str, _Source] = {}
    for source in found:
        same = merged.setdefault(source.type, source)
        if same is not source:
            both = [*(same.providers or []), *(source.providers or [])]
            same.providers = list({(each.name, each.guid): each for each in both}.values())
    for source in merged.values():
        source.providers = source.providers and [_finished(each, guids) for each in source.providers]
    document = _LogSources(log_config=_LogConfig(sources=list(merged.values()) or None))
    return base64.b64encode(dumps(document).encode()).decode()


def provider_guid(name: str) -> str:
    """Return the GUID of a well-known provider, by its name in any case; empty if it is unknown."""
    return _providers().get(name.lower(), "")


@cache
def _providers() -> dict[str, str]:
    data = get_data("uvm._guest", "etw_providers.txt")
    # None is of a loader that reads no files.
    assert data is not None
    lines = data.decode().splitlines()
    return {name: guid for guid, _, name in (line.partition(" ") for line in lines)}


def _default_source() -> _Source:
    return _Source(type=_ETW, providers=[_Provider(name=n, level="Information") for n in DEFAULT_PROVIDERS])


def _read(sources: str) -> _LogSources:
    try:
        document = json.loads(base64.b64decode("".join(sources.split()), validate=True))
        return from_json(_LogSources, _renamed(document))
    except (SchemaError, ValueError, RecursionError) as e:
        raise OptionsError(f"log_sources is not base64 of a JSON document of log sources: {e}") from e


_FIELDS: Final = (
    *("LogConfig", "sources", "type", "providers"),
    *("providerName", "providerGuid", "level", "keywords"),
)
_NAMES: Final = {name.lower(): name for name in _FIELDS}


def _renamed(value: Any) -> Any:
    """Return a document with its fields under their usual names, as Go finds them in any case."""
    if isinstance(value, dict):
        return {_NAMES.get(name.lower(), name): _renamed(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    return value


def _finished(provider: _Provider, guids: bool) -> _Provider:
    """Return a provider with the GUID that its name is known by, or without what says no more."""
    guid, known = _checked_guid(provider), provider_guid(provider.name)
    if guids:
        return provider.replaced(guid=guid or known)
    if not provider.name or not guid:
        return provider
    return provider.replaced(guid="") if guid == known else provider.replaced(name="", guid=guid)


_GUID: Final = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


def _checked_guid(provider: _Provider) -> str:
    """Return the GUID of a provider in the usual form; it may stand in braces. Empty where there is none."""
    text = guid_key(provider.guid)
    if provider.guid and not _GUID.fullmatch(text):
        raise OptionsError(f"log_sources: {provider.guid!r}, of the provider {provider.name!r}, is no GUID")
    return text
