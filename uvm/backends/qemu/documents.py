"""Documents of callers, read as strictly as HCS reads them."""

from __future__ import annotations

from typing import Any, TypeVar

from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import SchemaError, from_json

T = TypeVar("T")


def read_document(cls: type[T], document: Any, operation: str) -> T:
    """Return a document as a model.

    :raises HostError: HCS_E_INVALID_JSON if it is none.
    """
    try:
        return from_json(cls, document, forbid_extra=True)
    except SchemaError as error:
        raise HostError(operation, HResult.HCS_E_INVALID_JSON, str(error)) from None
