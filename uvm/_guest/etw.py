"""What the log forwarding service of a Windows guest is asked to forward: providers of event tracing (ETW).

Source: hcsshim internal/vm/vmutils/etw. The well-known providers are in ``etw_providers.txt`` beside this
module, a GUID and a name in each line.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any, Final

from attrs import define, evolve

from uvm.errors import OptionsError
from uvm.schema.field import named
from uvm.schema.json import SchemaError, dumps, from_json

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


@define(kw_only=True)
class _Provider:
    name: str = named("providerName", default="")
    guid: str = named("providerGuid", default="")
    level: str = named("level", default="")
    keywords: str = named("keywords", default="")

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.guid


@define(kw_only=True)
class _Source:
    type: str = named("type", default="", always=True)
    # None, which Go writes as null, is not the same as none of them.
    providers: list[_Provider] | None = named("providers", default=None, always=True)


@define(kw_only=True)
class _LogConfig:
    sources: list[_Source] | None = named("sources", default=None, always=True)


@define(kw_only=True)
class _LogSources:
    log_config: _LogConfig = named("LogConfig", factory=_LogConfig, always=True)


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
    given = _read(sources).log_config.sources if sources else None
    merged = _merge([_default_source()] if defaults else None, given)
    finish = _with_guid if guids else _without_guid
    for source in merged or []:
        if source.providers:
            source.providers = [finish(provider) for provider in source.providers]
    document = _LogSources(log_config=_LogConfig(sources=merged))
    return base64.b64encode(dumps(document).encode()).decode()


def provider_guid(name: str) -> str:
    """Return the GUID of a well-known provider, by its name in any case; empty if it is unknown."""
    return _providers().get(name.lower(), "")


@cache
def _providers() -> dict[str, str]:
    text = (files("uvm._guest") / "etw_providers.txt").read_text(encoding="utf-8")
    return {name: guid for guid, _, name in (line.partition(" ") for line in text.splitlines())}


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


def _merge(sources: list[_Source] | None, given: list[_Source] | None) -> list[_Source] | None:
    """Add sources to sources: those of one type become one."""
    for source in given or []:
        sources = sources or []
        same = next((s for s in sources if s.type == source.type), None)
        if same is None:
            sources.append(source)
        else:
            same.providers = _merge_providers(same.providers or [], source.providers or [])
    return sources


def _merge_providers(providers: Iterable[_Provider], given: Iterable[_Provider]) -> list[_Provider]:
    merged = {provider.key: provider for provider in providers}
    merged.update((provider.key, provider) for provider in given)
    return list(merged.values())


def _with_guid(provider: _Provider) -> _Provider:
    return evolve(provider, guid=_checked_guid(provider) or provider_guid(provider.name))


def _without_guid(provider: _Provider) -> _Provider:
    if not provider.name or not provider.guid:
        return provider
    guid = _checked_guid(provider)
    if guid == provider_guid(provider.name):
        return evolve(provider, guid="")
    return evolve(provider, name="", guid=guid)


_GUID: Final = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


def _checked_guid(provider: _Provider) -> str:
    """Return the GUID of a provider in the usual form; it may stand in braces. Empty where there is none."""
    text = provider.guid.strip().removeprefix("{").removesuffix("}").strip().lower()
    if provider.guid and not _GUID.fullmatch(text):
        raise OptionsError(f"log_sources: {provider.guid!r}, of the provider {provider.name!r}, is no GUID")
    return text
