"""The steps of a conversation between a host and a guest, with every byte of them written out.

The texts follow hcsshim's internal/gcs/prot/protocol.go (requests) and internal/guest/prot/protocol.go
(answers), field by field; they are not made by the models that the tests compare them with.
"""

from __future__ import annotations

from attrs import frozen

from uvm._wire.frames import Procedure
from uvm.schema.gcs import ContainerNotification, RequestBase, ResponseBase

#: The container that is spoken of.
CONTAINER = "c1a5"


@frozen
class Said:
    """A notification: its model, and its bytes as a header in hex and the JSON text."""

    model: ContainerNotification
    header: str
    text: str

    @property
    def data(self) -> bytes:
        return bytes.fromhex(self.header) + self.text.encode()


@frozen
class Exchange:
    """A request and the answer to it, if it has one."""

    procedure: Procedure
    request: RequestBase
    request_header: str
    request_text: str
    response: ResponseBase | None = None
    response_header: str = ""
    response_text: str = ""

    @property
    def request_data(self) -> bytes:
        return bytes.fromhex(self.request_header) + self.request_text.encode()

    @property
    def response_data(self) -> bytes:
        return bytes.fromhex(self.response_header) + self.response_text.encode()
