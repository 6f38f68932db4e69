"""What the sidecar of a confidential Windows guest refuses, whatever the security policy allows.

It stands before the guest's own service. Until a policy is set, it refuses all that one would be asked about.

Source: hcsshim internal/gcs-sidecar/handlers.go and uvm.go.
"""

from __future__ import annotations

import re
from typing import Final

from uvm.backend import JSON
from uvm.backends.fake.guest.messages import Incoming
from uvm.backends.fake.guest.state import FakeGuest, GuestRequest
from uvm.hresult import HResult
from uvm.schema.container import CWCOWHostedSystem
from uvm.schema.guest import CWCOWCombinedLayers
from uvm.schema.json import to_json

#: Where the one layer of a container is: the block CIMs that are mounted for it.
_VOLUME: Final = re.compile(
    r"\\\\\?\\Volume\{([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})\}\\Files", re.IGNORECASE
)
_NO_POLICY: Final = "operation denied: no security policy is set"


def check_open(request: Incoming | GuestRequest, guest: FakeGuest, what: str) -> None:
    """Refuse what is asked before there is a policy."""
    if guest.policy is None:
        raise request.refuse(HResult.E_FAIL, f"{what}: {_NO_POLICY}")


def admitted_container(request: Incoming, guest: FakeGuest, text: str, document: JSON) -> JSON:
    """Return the document of a container that the guest's own service takes."""
    invalid = request.refuse(HResult.E_FAIL, "invalid request to createContainer")
    if "CWCOWHostedSystem" not in document:
        raise invalid
    wanted = request.read_document(CWCOWHostedSystem, "ContainerConfig", text, document)
    if not wanted.spec.get("ociVersion") or wanted.cwcow_hosted_system.container is None:
        raise invalid
    check_open(request, guest, "CreateContainer operation is denied by policy")
    admitted: JSON = to_json(wanted.cwcow_hosted_system)
    return admitted


def check_layers(request: GuestRequest, guest: FakeGuest, wanted: CWCOWCombinedLayers) -> None:
    """Refuse layers other than one volume of block CIMs."""
    check_open(request, guest, "scratch mounting denied by policy")
    if request.action != "Add":
        return
    layers = wanted.combined_layers.layers
    if len(layers) != 1:
        text = f"expected exactly one layer in CWCOWCombinedLayers, got {len(layers)}"
        raise request.refuse(HResult.E_FAIL, text)
    if not _VOLUME.fullmatch(layers[0].path):
        raise request.refuse(HResult.E_FAIL, f"invalid volumeGUID {wanted.container_id}")
