"""The result codes that the fake gives, by their names in ``winerror.h``.

Which refusal gets which code, and on what evidence, stands in ``docs/fake.md``.
"""

from __future__ import annotations

from typing import Final

E_NOTIMPL: Final = 0x80004001
E_FAIL: Final = 0x80004005
ERROR_FILE_NOT_FOUND: Final = 0x80070002
ERROR_PATH_NOT_FOUND: Final = 0x80070003
E_ACCESSDENIED: Final = 0x80070005
E_HANDLE: Final = 0x80070006
ERROR_SHARING_VIOLATION: Final = 0x80070020
ERROR_NOT_SUPPORTED: Final = 0x80070032
E_INVALIDARG: Final = 0x80070057
ERROR_ALREADY_EXISTS: Final = 0x800700B7
ERROR_DIRECTORY: Final = 0x8007010B
ERROR_NOT_FOUND: Final = 0x80070490
ERROR_NO_SYSTEM_RESOURCES: Final = 0x800705AA
WSAEADDRINUSE: Final = 0x80072740
WSAECONNREFUSED: Final = 0x8007274D

HCS_E_INVALID_STATE: Final = 0x80370105
HCS_E_UNEXPECTED_EXIT: Final = 0x80370106
HCS_E_INVALID_JSON: Final = 0x8037010D
HCS_E_SYSTEM_NOT_FOUND: Final = 0x8037010E
HCS_E_SYSTEM_ALREADY_EXISTS: Final = 0x8037010F
HCS_E_SYSTEM_ALREADY_STOPPED: Final = 0x80370110
HCS_E_GUEST_CRITICAL_ERROR: Final = 0x8037011C
HCS_E_NOT_CONFIGURED: Final = 0x80370120

#: What a guest says of what it cannot do in the state that it is in.
GUEST_INVALID_STATE: Final = 0xC0370105
#: What a guest says of a wait that took too long.
GUEST_TIMEOUT: Final = 0xC0370109
#: What a guest says of versions of the protocol that it does not speak.
GUEST_UNSUPPORTED_PROTOCOL_VERSION: Final = 0xC037010C
#: What a guest says of JSON that it cannot read.
GUEST_INVALID_JSON: Final = 0xC037010D
#: What a guest says of a container that it does not have, and of one that it has already.
GUEST_SYSTEM_NOT_FOUND: Final = 0xC037010E
GUEST_SYSTEM_ALREADY_EXISTS: Final = 0xC037010F
#: What a guest says of a container that has exited.
GUEST_SYSTEM_ALREADY_STOPPED: Final = 0xC0370110

HCN_E_NETWORK_NOT_FOUND: Final = 0x803B0001
HCN_E_ENDPOINT_NOT_FOUND: Final = 0x803B0002
HCN_E_ENDPOINT_ALREADY_ATTACHED: Final = 0x803B0014
HCN_E_INVALID_JSON: Final = 0x803B001B
GCN_E_NETADAPTER_NOT_FOUND: Final = 0x803B0026
GCN_E_NETCOMPARTMENT_NOT_FOUND: Final = 0x803B0027
HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS: Final = 0x803B002B
HCN_E_ENTITY_HAS_REFERENCES: Final = 0x803B002C
