"""What the log forwarding service of a Windows guest is told."""

from __future__ import annotations

import base64
import json
import re
from importlib.resources import files
from typing import Any

import pytest

from uvm._guest.etw import DEFAULT_PROVIDERS, log_settings, provider_guid
from uvm.errors import OptionsError

COMPUTE = "microsoft.windows.hyperv.compute"
COMPUTE_GUID = "80ce50de-d264-4581-950d-abadeee0d340"
OTHER_GUID = "11111111-2222-3333-4444-55555555abcd"


def encoded(document: object) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def etw(*providers: dict[str, str], kind: str = "ETW") -> str:
    return encoded({"LogConfig": {"sources": [{"type": kind, "providers": list(providers)}]}})


def settings(sources: str, *, defaults: bool = False, guids: bool = True) -> Any:
    """The sources in the settings that are made."""
    text = base64.b64decode(log_settings(sources, defaults=defaults, guids=guids))
    document = json.loads(text)
    assert list(document) == ["LogConfig"]
    assert list(document["LogConfig"]) == ["sources"]
    return document["LogConfig"]["sources"]


def test_the_default_providers_go_with_their_guids() -> None:
    (source,) = settings("", defaults=True)
    assert source["type"] == "ETW"
    assert [provider["providerName"] for provider in source["providers"]] == list(DEFAULT_PROVIDERS)
    assert source["providers"][0] == {
        "providerName": COMPUTE,
        "providerGuid": COMPUTE_GUID,
        "level": "Information",
    }
    assert all(re.fullmatch("[0-9a-f-]{36}", provider["providerGuid"]) for provider in source["providers"])


def test_a_confidential_guest_gets_names_alone() -> None:
    (source,) = settings("", defaults=True, guids=False)
    assert [set(provider) for provider in source["providers"]] == [{"providerName", "level"}] * 13


def test_nothing_is_asked_for_as_hcsshim_writes_it() -> None:
    assert base64.b64decode(log_settings("", defaults=False, guids=True)) == b'{"LogConfig":{"sources":null}}'


def test_what_the_user_says_of_a_default_provider_counts() -> None:
    mine = {"providerName": COMPUTE, "level": "Verbose", "keywords": "0x1"}
    (source,) = settings(etw(mine), defaults=True)
    assert len(source["providers"]) == 13
    assert source["providers"][0] == {**mine, "providerGuid": COMPUTE_GUID}


def test_other_providers_come_after_the_default_ones() -> None:
    (source,) = settings(etw({"providerName": "mine"}), defaults=True)
    assert source["providers"][13:] == [{"providerName": "mine"}]


def test_sources_of_another_type_stand_beside_the_default_ones() -> None:
    assert [source["type"] for source in settings(etw(kind="EventLog"), defaults=True)] == ["ETW", "EventLog"]


def test_sources_of_one_type_become_one() -> None:
    source = {"type": "ETW", "providers": [{"providerName": "mine", "level": "Error"}]}
    again = {"type": "ETW", "providers": [{"providerName": "mine"}, {"providerGuid": OTHER_GUID}]}
    assert settings(encoded({"LogConfig": {"sources": [source, again]}})) == [
        {"type": "ETW", "providers": [{"providerName": "mine"}, {"providerGuid": OTHER_GUID}]}
    ]


def test_two_calls_do_not_disturb_each_other() -> None:
    settings(etw({"providerName": "mine"}), defaults=True)
    (source,) = settings("", defaults=True, guids=False)
    assert len(source["providers"]) == 13


@pytest.mark.parametrize("name", [COMPUTE, "Microsoft.Windows.HyperV.Compute"])
def test_a_name_finds_its_guid_in_any_case(name: str) -> None:
    assert settings(etw({"providerName": name}))[0]["providers"] == [
        {"providerName": name, "providerGuid": COMPUTE_GUID}
    ]


@pytest.mark.parametrize("given", [OTHER_GUID, OTHER_GUID.upper(), f" {{{OTHER_GUID}}} "])
def test_a_guid_may_be_in_braces_and_in_any_case(given: str) -> None:
    assert settings(etw({"providerGuid": given}))[0]["providers"] == [{"providerGuid": OTHER_GUID}]


def test_without_guids_one_that_says_no_more_than_the_name_is_left_out() -> None:
    given = etw({"providerName": COMPUTE, "providerGuid": f"{{{COMPUTE_GUID.upper()}}}"})
    assert settings(given, guids=False)[0]["providers"] == [{"providerName": COMPUTE}]


def test_without_guids_a_name_that_another_guid_stands_beside_is_left_out() -> None:
    given = etw({"providerName": COMPUTE, "providerGuid": OTHER_GUID.upper(), "level": "Error"})
    assert settings(given, guids=False)[0]["providers"] == [{"providerGuid": OTHER_GUID, "level": "Error"}]


def test_field_names_are_found_in_any_case_and_others_ignored() -> None:
    document = {"logconfig": {"Sources": [{"TYPE": "ETW", "Providers": [{"ProviderName": "a", "x": 1}]}]}}
    assert settings(encoded(document)) == [{"type": "ETW", "providers": [{"providerName": "a"}]}]


def test_line_ends_in_the_base64_do_not_matter() -> None:
    given = etw({"providerName": "mine"})
    assert settings(f"{given[:20]}\r\n{given[20:]}\n") == settings(given)


BAD_SOURCES = {
    "no base64": "!!!",
    "not ASCII": "ä",
    "no JSON": base64.b64encode(b"{{not json}}").decode(),
    "not UTF-8": base64.b64encode(b'{"\xff":1}').decode(),
    "a list": encoded([]),
    "sources that are no list": encoded({"LogConfig": {"sources": "all"}}),
    "a level that is a number": etw({"providerName": "a", "level": 4}),  # type: ignore[dict-item]
    "nesting without end": base64.b64encode(b"[" * 100_000).decode(),
}


@pytest.mark.parametrize("sources", BAD_SOURCES.values(), ids=BAD_SOURCES.keys())
def test_sources_that_cannot_be_read_are_refused(sources: str) -> None:
    with pytest.raises(OptionsError, match="log_sources is not base64 of a JSON document"):
        log_settings(sources, defaults=True, guids=True)


@pytest.mark.parametrize("guids", [True, False])
@pytest.mark.parametrize("guid", ["nope", "{}", f"{OTHER_GUID}0", "g" + OTHER_GUID[1:]])
@pytest.mark.parametrize("name", ["mine", ""])
def test_a_guid_that_is_none_is_refused_by_name(name: str, guid: str, guids: bool) -> None:
    with pytest.raises(OptionsError, match=f"{re.escape(repr(guid))}, of the provider '{name}', is no GUID"):
        log_settings(etw({"providerName": name, "providerGuid": guid}), defaults=False, guids=guids)


def test_nobody_knows_the_guid_of_a_provider_that_is_not_well_known() -> None:
    assert provider_guid("mine") == ""
    assert provider_guid(".NET Common Language Runtime") == "e13c0d23-ccbc-4e12-931b-d9cc2eee27e4"


def test_each_line_of_the_table_is_a_guid_and_a_name_in_lower_case_sorted_by_name() -> None:
    lines = (files("uvm._guest") / "etw_providers.txt").read_text(encoding="utf-8").splitlines()
    names = [line[37:] for line in lines]
    assert len(lines) == 1194
    assert all(re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12} .+", line) for line in lines)
    assert names == sorted(set(names))
    assert names == [name.lower() for name in names]
