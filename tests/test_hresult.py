"""The codes by their names, and the refusals that have them."""

from __future__ import annotations

import pytest

from uvm.errors import GuestError, HostError, RefusedError
from uvm.hresult import HResult, hresult, hresult_from_win32, hresult_name

UNKNOWN = 0x80371234


@pytest.mark.parametrize("code", HResult)
def test_a_known_code_is_found_signed_and_unsigned(code: HResult) -> None:
    assert hresult(int(code)) is code
    assert hresult(int(code) - (1 << 32)) is code
    assert hresult_name(code) == code.name


def test_an_unknown_code_stays_a_number_and_is_written_in_hexadecimal() -> None:
    assert hresult(UNKNOWN - (1 << 32)) == UNKNOWN
    assert not isinstance(hresult(UNKNOWN), HResult)
    assert hresult_name(UNKNOWN) == "0x80371234"


def test_host_and_guest_have_codes_of_their_own_for_the_same() -> None:
    assert hresult_name(0x8037010E) == "HCS_E_SYSTEM_NOT_FOUND"
    assert hresult_name(0xC037010E) == "ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND"


@pytest.mark.parametrize(
    ("code", "expected"),
    [(5, HResult.E_ACCESSDENIED), (0, 0), (0x80370105, HResult.HCS_E_INVALID_STATE), (12345, 0x80073039)],
)
def test_a_windows_error_code_becomes_an_hresult_and_an_hresult_stays(code: int, expected: int) -> None:
    assert hresult_from_win32(code) == expected


@pytest.mark.parametrize("kind", [HostError, GuestError])
def test_a_refusal_has_its_code_and_name_whoever_refused(kind: type[RefusedError]) -> None:
    error = kind("modify x", 0x80070057 - (1 << 32), "bad LUN")
    assert (error.hresult, error.name, error.text) == (HResult.E_INVALIDARG, "E_INVALIDARG", "bad LUN")
    assert str(error).endswith("E_INVALIDARG (0x80070057): bad LUN")
    assert isinstance(error, RefusedError)
