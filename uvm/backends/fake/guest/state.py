"""The state of the guest in a fake VM: what Linux and Windows guests have in common."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, ClassVar, Final, Literal, Self, TypeAlias, TypeVar

from attrs import define, evolve, field

from uvm._names import GuestOS, guest_path_key
from uvm._repr import Value, showing
from uvm.backend import JSON
from uvm.backends.fake.devices import request as devices
from uvm.backends.fake.host import Checks
from uvm.backends.fake.paths import PathTable
from uvm.backends.fake.tree import DeviceTree
from uvm.errors import GuestError, OptionsError
from uvm.hresult import HResult
from uvm.schema.guest import ConfidentialOptions, SecurityPolicyFragment
from uvm.schema.json import SchemaError, from_json
from uvm.schema.requests import ModificationRequest

T = TypeVar("T")
Device: TypeAlias = devices.Device[Any]


@define(repr=False)
class Mount(Value):
    """A mount in a guest.

    :ivar kind: ``blockdev`` is a link to a disk's device node, ``directory`` a mapped directory.
    :ivar layers: the layers, and the scratch, of an ``overlay``.
    """

    path: str
    kind: Literal["disk", "blockdev", "pmem", "plan9", "directory", "overlay"]
    device: Device | None = None
    read_only: bool = False
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.device or self.kind} at {self.path}"


@define(eq=False, repr=False)
class GuestRequest:
    """A ``ModificationRequest`` to one kind of resource.

    :ivar failure: the guest's code for a request that it cannot carry out.
    """

    action: str
    resource: str
    settings: Any
    failure: int

    @property
    def operation(self) -> str:
        """The request in an error message."""
        return f"{self.action} {self.resource or 'request'}"

    def parse(self, cls: type[T]) -> T:
        """Return the settings as a model; unknown fields and wrong types are refused."""
        try:
            return from_json(cls, {} if self.settings is None else self.settings, forbid_extra=True)
        except SchemaError as e:
            raise self.refuse(HResult.ERROR_VMCOMPUTE_INVALID_JSON, str(e)) from None

    def refuse(self, code: int, text: str) -> GuestError:
        """Return the error that refuses the request."""
        return GuestError(self.operation, code, text)

    def fail(self, text: str) -> GuestError:
        """Return the error for a request that the guest cannot carry out."""
        return self.refuse(self.failure, text)

    def only(self, *actions: str) -> None:
        """Refuse other request types."""
        if self.action not in actions:
            raise self.fail(f"the RequestType {self.action!r} is not supported")


class Mounts(PathTable[Mount]):
    """The mounts of a guest, by path as the guest compares paths."""

    def __init__(self, separator: str) -> None:
        super().__init__(separator)
        self._on: dict[Device, dict[str, None]] = {}

    def __setitem__(self, path: str, mount: Mount) -> None:
        self.pop(path, None)
        super().__setitem__(path, mount)
        if mount.device is not None:
            self._on.setdefault(mount.device, {})[path] = None

    def __delitem__(self, path: str) -> None:
        device = self[path].device
        super().__delitem__(path)
        if device is not None:
            del self._on[device][path]
            if not self._on[device]:
                del self._on[device]

    def on(self, device: Device) -> Mount | None:
        """Return the first mount of a device that there is; None if there is none."""
        return next((self[path] for path in self._on.get(device, ())), None)


#: What enforces a policy, and what may be added to one (hcsshim pkg/securitypolicy).
_ENFORCERS: Final = ("", "open_door", "rego")
_MEDIA_TYPES: Final = (
    "",
    "application/cose-x509+rego",
    "application/vnd.transparency-trust-list.v1+cose",
    "application/vnd.tcb-reference-info.v1+cose",
    "application/vnd.platform-reference-info.v1+cose",
)


def _check_base64(request: GuestRequest, what: str, text: str) -> None:
    try:
        base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except ValueError:
        raise request.fail(f"failed to decode {what}: illegal base64 data") from None


#: Carries out a request to one kind of resource, or raises GuestError and changes nothing.
Handler = Callable[[Any, GuestRequest], None]


@showing("mounts", "fragments")
@define(eq=False, repr=False)
class FakeGuest:
    """The state of a running guest. Everything is checked against what the host has attached.

    :ivar isolated: the VM is, so that a Windows guest has its sidecar.
    :ivar policy: the security policy's document; None until it is set.
    :ivar fragments: the policy fragments, in order.
    """

    tree: DeviceTree
    checks: Checks
    capabilities: Mapping[str, Any]
    isolated: bool = False
    _mounts: Mounts = field(init=False)
    policy: ConfidentialOptions | None = field(default=None, init=False)
    fragments: list[SecurityPolicyFragment] = field(factory=list, init=False)

    os: ClassVar[GuestOS]
    paths: ClassVar[Any]
    own_capabilities: ClassVar[Mapping[str, bool]]
    handlers: ClassVar[dict[str, Handler]]
    #: The code for a request that it cannot carry out, and for an unknown resource type.
    failure: ClassVar[int]

    @_mounts.default
    def _no_mounts(self) -> Mounts:
        return Mounts(self.paths.sep)

    @property
    def confidential(self) -> bool:
        """Whether there is a security policy."""
        return self.policy is not None and bool(self.policy.encoded_security_policy)

    @property
    def mounts(self) -> MutableMapping[str, Mount]:
        """The mounts, by path as the guest compares paths."""
        return self._mounts

    def modify(self, document: JSON) -> None:
        """Carry out a ``ModificationRequest``.

        :raises GuestError: it is refused; nothing has changed.
        """
        request = self.read(document)
        handler = self.handlers.get(request.resource)
        if handler is None:
            raise request.fail(f"invalid ResourceType {request.resource!r}")
        handler(self, request)

    def read(self, document: JSON) -> GuestRequest:
        """Return a request, parsed; one without a type adds."""
        try:
            request = from_json(ModificationRequest, document, forbid_extra=True)
        except SchemaError as e:
            raise GuestError("modify", HResult.ERROR_VMCOMPUTE_INVALID_JSON, str(e)) from None
        return GuestRequest(
            request.request_type or "Add", request.resource_type, request.settings, self.failure
        )

    def inconsistencies(self) -> list[str]:
        """Return dangling references: mounts whose device is gone, overlays without a layer."""
        mounts = self._mounts.values()
        found = [f"{m} is no longer attached" for m in mounts if m.device and not m.device.attached]
        if self.checks.guest:
            layers = [(mount, layer) for mount in mounts for layer in mount.layers]
            found += [f"{m} lacks its layer {layer}" for m, layer in layers if not self.exists(layer)]
        return found

    def copied(self, tree: DeviceTree) -> Self:
        """Return the same guest in a VM that starts from the memory of this one.

        :param tree: the devices of that VM.
        """
        twin = type(self)(tree, self.checks, self.capabilities)
        for path, mount in self._mounts.items():
            device = None if mount.device is None else self.tree.twin(mount.device, tree)
            twin._mounts[path] = evolve(mount, device=device)
        twin.policy, twin.fragments = self.policy, list(self.fragments)
        return twin

    def end(self) -> None:
        """Remove all mounts: the VM has exited."""
        self._mounts.clear()

    def exists(self, path: str) -> bool:
        """Return whether a path lies on something mounted; a guest's own root holds no layers."""
        return self.mount_of(path) is not None

    def mount_of(self, path: str) -> Mount | None:
        """Return the mount that a path lies on; None if it lies on the guest's own root."""
        return next((self._mounts[key] for key in self._mounts.around(self.key(path))), None)

    def mount_in(self, directory: str) -> Mount | None:
        """Return the innermost mount in a directory, or on it; None if there is none."""
        key = self.key(directory)
        innermost = max(self._mounts.inside(key), key=len, default=key)
        return self._mounts.get(innermost)

    def key(self, path: str) -> str:
        """Return the key of a guest path; what is no path of the guest is its own key."""
        try:
            return guest_path_key(path, self.os)
        except OptionsError:
            return path

    def mount(self, request: GuestRequest, mount: Mount) -> None:
        """Mount at a path that has no mount."""
        if not mount.path:
            raise request.fail("the path to mount at is missing")
        key = self.key(mount.path)
        if key in self._mounts:
            raise request.fail(f"{self._mounts[key]} is mounted there")
        self._mounts[key] = mount

    def unmount(self, request: GuestRequest, path: str, device: Device | None) -> None:
        """Unmount a path that has no mount inside.

        :param device: the device that is expected there; None if the request names none.
        """
        key = self.key(path)
        mount = self._mounts.get(key)
        if mount is None or (device is not None and mount.device is not device):
            if self.checks.guest:
                raise request.fail(f"{device or 'nothing'} is not mounted at {path!r}")
            return
        for inside in self._mounts.inside(key):
            raise request.fail(f"{path} is busy: {self._mounts[inside]} is mounted on it")
        del self._mounts[key]

    def set_policy(self, request: GuestRequest) -> None:
        """Set the security policy, once."""
        policy = request.parse(ConfidentialOptions)
        if self.policy is not None:
            raise request.fail("security policy has already been set")
        if policy.enforcer_type not in _ENFORCERS:
            raise request.fail(
                f'error creating security policy enforcer: unknown enforcer: "{policy.enforcer_type}"'
            )
        _check_base64(request, "policy", policy.encoded_security_policy)
        self.policy = policy

    def inject_fragment(self, request: GuestRequest) -> None:
        """Add a fragment to the security policy."""
        fragment = request.parse(SecurityPolicyFragment)
        if self.checks.guest and self.policy is None:
            raise request.fail("there is no security policy")
        if fragment.media_type not in _MEDIA_TYPES:
            raise request.fail(
                f'cannot inject fragment blob with unsupported media type "{fragment.media_type}"'
            )
        _check_base64(request, "fragment", fragment.fragment)
        self.fragments.append(fragment)
