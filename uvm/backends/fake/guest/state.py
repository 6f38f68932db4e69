"""The compute service inside a fake VM: what Linux and Windows guests have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from attrs import define, field, frozen

from uvm._names import guest_path_key
from uvm.backend import JSON
from uvm.backends.fake.host import Checks
from uvm.backends.fake.tree import DeviceTree
from uvm.errors import GuestError, OptionsError
from uvm.hresult import HResult
from uvm.schema.guest import ConfidentialOptions, SecurityPolicyFragment
from uvm.schema.json import SchemaError, from_json
from uvm.schema.requests import ModificationRequest

T = TypeVar("T")


class Device(Protocol):
    """Something that the host attached."""

    @property
    def attached(self) -> bool:
        """False once the host has taken it away."""


@frozen
class Mount:
    """Something mounted in a guest.

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


@frozen
class GuestRequest:
    """A ``ModificationRequest`` to one kind of resource."""

    action: str
    resource: str
    settings: Any

    @property
    def operation(self) -> str:
        """The request for a message."""
        return f"{self.action} {self.resource or 'request'}"

    def parse(self, cls: type[T]) -> T:
        """Read the settings; unknown fields and wrong types are refused."""
        try:
            return from_json(cls, {} if self.settings is None else self.settings, forbid_extra=True)
        except SchemaError as e:
            raise self.refuse(HResult.ERROR_VMCOMPUTE_INVALID_JSON, str(e)) from None

    def refuse(self, code: int, text: str) -> GuestError:
        """Make the exception that refuses the request."""
        return GuestError(self.operation, code, text)


#: Carries out a request to one kind of resource, or raises GuestError and changes nothing.
Handler = Callable[[Any, GuestRequest], None]


@define(eq=False)
class FakeGuest:
    """The state of a running guest. Everything is checked against what the host has attached.

    :ivar mounts: what is mounted where, by path as the guest compares paths.
    :ivar policy: the security policy's document, once it was set.
    :ivar fragments: the policy fragments, in order.
    """

    tree: DeviceTree
    checks: Checks
    capabilities: Mapping[str, Any]
    mounts: dict[str, Mount] = field(factory=dict, init=False)
    policy: ConfidentialOptions | None = field(default=None, init=False)
    fragments: tuple[SecurityPolicyFragment, ...] = field(default=(), init=False)

    os: ClassVar[Literal["linux", "windows"]]
    paths: ClassVar[Any]
    handlers: ClassVar[dict[str, Handler]]
    #: What the guest says to a request that it cannot carry out, and to an unknown resource type.
    failure: ClassVar[int]

    def modify(self, document: JSON) -> None:
        """Carry out a ``ModificationRequest``.

        :raises GuestError: it is refused; nothing has changed.
        """
        request = self.read(document)
        handler = self.handlers.get(request.resource)
        if handler is None:
            raise request.refuse(self.failure, f"invalid ResourceType {request.resource!r}")
        handler(self, request)

    def read(self, document: JSON) -> GuestRequest:
        """Read a request; one without a type adds."""
        try:
            request = from_json(ModificationRequest, document, forbid_extra=True)
        except SchemaError as e:
            raise GuestError("modify", HResult.ERROR_VMCOMPUTE_INVALID_JSON, str(e)) from None
        return GuestRequest(request.request_type or "Add", request.resource_type, request.settings)

    def inconsistencies(self) -> list[str]:
        """Return dangling references: mounts whose device is gone, overlays without a layer."""
        found = [
            f"{m} is no longer attached" for m in self.mounts.values() if m.device and not m.device.attached
        ]
        if self.checks.guest:
            found += [
                f"{mount} lacks its layer {layer}"
                for mount in self.mounts.values()
                for layer in mount.layers
                if not self.exists(layer)
            ]
        return found

    def end(self) -> None:
        """Forget everything: the VM has exited."""
        self.mounts.clear()

    def exists(self, path: str) -> bool:
        """Return whether a path lies on something mounted; a guest's own root holds no layers."""
        return self.mount_of(path) is not None

    def mount_of(self, path: str) -> Mount | None:
        """Return the mount that a path lies on; None if it lies on the guest's own root."""
        key = self.key(path)
        on = [k for k in self.mounts if key == k or key.startswith(k.rstrip(self.paths.sep) + self.paths.sep)]
        return self.mounts[max(on, key=len)] if on else None

    def mount_in(self, directory: str) -> Mount | None:
        """Return the innermost mount in a directory, or on it; None if there is none."""
        key = self.key(directory)
        inside = [k for k in self.mounts if k == key or k.startswith(key + self.paths.sep)]
        return self.mounts[max(inside, key=len)] if inside else None

    def key(self, path: str) -> str:
        """Return the key of a guest path; what is no path of the guest is nothing but itself."""
        try:
            return guest_path_key(path, self.os)
        except OptionsError:
            return path

    def mount(self, request: GuestRequest, mount: Mount) -> None:
        """Mount something where nothing is mounted."""
        if not mount.path:
            raise request.refuse(self.failure, "the path to mount at is missing")
        key = self.key(mount.path)
        if key in self.mounts:
            raise request.refuse(self.failure, f"{self.mounts[key]} is mounted there")
        self.mounts[key] = mount

    def unmount(self, request: GuestRequest, path: str, device: Device | None) -> None:
        """Unmount a path on which nothing else is mounted.

        :param device: what should be mounted there; None where the request does not say.
        """
        key = self.key(path)
        mount = self.mounts.get(key)
        if mount is None or (device is not None and mount.device is not device):
            if self.checks.guest:
                raise request.refuse(self.failure, f"{device or 'nothing'} is not mounted at {path!r}")
            return
        inside = [m for k, m in self.mounts.items() if k.startswith(key + self.paths.sep)]
        if inside:
            raise request.refuse(self.failure, f"{path} is busy: {inside[0]} is mounted on it")
        del self.mounts[key]

    def only(self, request: GuestRequest, *actions: str) -> None:
        """Refuse other request types."""
        if request.action not in actions:
            raise request.refuse(self.failure, f"the RequestType {request.action!r} is not supported")

    def set_policy(self, request: GuestRequest) -> None:
        """Set the security policy, which is done once."""
        policy = request.parse(ConfidentialOptions)
        if self.policy is not None:
            raise request.refuse(self.failure, "the security policy has been set")
        self.policy = policy

    def inject_fragment(self, request: GuestRequest) -> None:
        """Add a fragment to the security policy."""
        fragment = request.parse(SecurityPolicyFragment)
        if self.checks.guest and self.policy is None:
            raise request.refuse(self.failure, "there is no security policy")
        self.fragments = (*self.fragments, fragment)
