"""Create the compute system of a VM: decide, prepare the host, create; roll back what fails or is cancelled.

What has been prepared is noted as it is made, and removed when the VM closes.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio
from attrs import define, evolve, field, frozen

from uvm._buses.access import Access, HostName
from uvm._buses.context import Context
from uvm._buses.link import Link
from uvm._document import files_to_stat, plan_creation
from uvm._document.boot import boot_directory
from uvm._document.plan import (
    CopyFile,
    CreationPlan,
    GrantAccess,
    MakeDirectory,
    MakeOverlay,
    Preparation,
    SetDiskId,
)
from uvm._log import Log
from uvm._names import GuestOS, host_path, host_path_key, pipe_path
from uvm._observed import BACKEND_REQUESTS, SYSTEM_REQUESTS, Door, Observed, asked, observe
from uvm._systems import end_if_there, state_on_host
from uvm.backend import VM_GROUP, Backend, Concurrency, HostInfo, System
from uvm.errors import HostError, HostPathError, NotSupportedError, OptionsError, is_refusal
from uvm.hresult import HResult
from uvm.options import LCOWOptions, Options
from uvm.options.template import SAVED_AS_TEMPLATE, Template
from uvm.schema.common import V21H1
from uvm.schema.guest import RESOURCE_SECURITY_POLICY, ConfidentialOptions
from uvm.schema.requests import ADD, ModificationRequest

if TYPE_CHECKING:
    from uvm.options import WCOWOptions

_log = Log("uvm")

#: A signed measurement is a few KiB; anything near this is not one.
_REFERENCE_INFO_MAX_BYTES = 1 << 20
#: Their names under the root of the boot files of a confidential Windows VM (hcsshim internal/vm/vmutils).
_REFERENCE_INFO = ("reference_info.cose", "reference_info_hash_envelope.cose")


@define(eq=False, repr=False)
class HostArtifacts:
    """The artifacts of a VM's creation on the host, to remove when the VM closes.

    :ivar grants: paths to which the VM itself has access, until it is created. Grants to the VM group are
        shared with other VMs and stay.
    :ivar files: files that were made for this VM alone.
    :ivar directories: directories that were not there before, parents first; only empty ones are removed.
    """

    backend: Backend
    host: HostInfo
    plan: CreationPlan
    grants: list[HostName] = field(factory=list)
    files: list[str] = field(factory=list)
    directories: list[str] = field(factory=list)

    async def prepare(self, steps: Sequence[Preparation]) -> None:
        """Carry out steps of the plan on the host, noting what to remove."""
        for step in steps:
            match step:
                case CopyFile(source, target):
                    await self._make_file(source, target, self.backend.files.copy)
                case MakeOverlay(base, target):
                    await self._make_file(base, target, self.backend.files.make_overlay)
                case MakeDirectory(path):
                    await self._make_directory(path)
                case SetDiskId(path, disk_id):
                    await self.backend.files.set_disk_id(path, disk_id)
                case GrantAccess(path, to_vm_group, mask):
                    if not to_vm_group:
                        key = host_path_key(await self.backend.files.resolve(path), self.host.paths)
                        self.grants.append(HostName(path, (key,)))
                    await self.backend.grant_access(path, VM_GROUP if to_vm_group else self.plan.id, mask)

    async def _make_directory(self, path: str) -> None:
        missing: list[str] = []
        for directory in _upwards(path, self.host):
            if await self.backend.files.stat(directory) is not None:
                break
            missing.insert(0, directory)
        self.directories += missing
        await self.backend.files.mkdir(path)

    async def _make_file(self, source: str, target: str, make: Callable[[str, str], Awaitable[None]]) -> None:
        await self._make_directory(self.host.path.dirname(target))
        made_for_it = target in self.plan.temporary_files
        if made_for_it:
            self.files.append(target)
        try:
            await make(source, target)
        except Exception as error:
            if made_for_it and is_refusal(error):
                # A file that is there is not ours.
                self.files.remove(target)
            raise

    @property
    def to_remove(self) -> bool:
        """Whether there is something to revoke or to remove."""
        return bool(self.grants or self.files or self.directories)

    async def remove(self) -> list[Exception]:
        """Revoke and remove all of it; return the errors of what could not be."""
        errors: list[Exception] = []
        for granted in self.grants:
            try:
                await self.backend.revoke_access(granted.path, self.plan.id)
            except Exception as error:
                errors.append(error)
        for path in (*self.files, *reversed(self.directories)):
            noted = self.directories if path in self.directories else self.files
            try:
                await self.backend.files.remove(path)
            except Exception as error:
                # A directory that is not empty is in use by others.
                if noted is self.files or not isinstance(error, HostPathError):
                    errors.append(error)
            # Not removed again if this is cut off and called again.
            noted.remove(path)
        return errors


def _upwards(path: str, host: HostInfo) -> Iterator[str]:
    """Yield a directory and its parents, without the root."""
    while (parent := host.path.dirname(path)) != path:
        yield path
        path = parent


@frozen(eq=False, repr=False)
class Settings:
    """The settings of a creation, beside the VM's options.

    :ivar concurrency: in place of the host's.
    :ivar amend: returns the plan to carry out in place of the one that follows from the options.
    :ivar grace_seconds: how long each step of rolling back or ending may take.
    """

    concurrency: Concurrency | None
    amend: Callable[[CreationPlan], CreationPlan] | None
    grace_seconds: float


async def create(
    options: LCOWOptions | WCOWOptions, backend: Backend, settings: Settings
) -> tuple[Context, System, HostArtifacts]:
    """Create a compute system, and return it with the context of its devices and its artifacts on the host.

    If it fails or is cancelled, nothing stays behind.
    """
    host = await backend.host()
    plan = await build_plan(options, backend, host)
    if settings.amend is not None:
        plan = _amended(plan, settings.amend)
    if options.id:
        await _refuse_if_there(plan.id, backend)
    if options.clone_of is not None:
        await _check_there(options.clone_of, backend)
    backend = asked(backend, plan.id, BACKEND_REQUESTS)
    artifacts = HostArtifacts(backend, host, plan)
    what = Observed(Door.VM, plan.id, "create")
    system = await observe(what, partial(_prepare_and_create, artifacts, settings.grace_seconds))
    link = Link(plan.id, system, exit_grace_seconds=settings.grace_seconds)
    concurrency = settings.concurrency or host.concurrency
    access = Access(backend, link)
    for granted in artifacts.grants:
        access.adopt(granted)
    artifacts.grants.clear()
    context = Context(backend, host, options, plan, concurrency, link, access)
    return context, system, artifacts


async def _prepare_and_create(artifacts: HostArtifacts, grace_seconds: float) -> System:
    try:
        await artifacts.prepare(artifacts.plan.preparations)
        return await _create(artifacts.plan, artifacts.backend, grace_seconds)
    except BaseException as failure:
        with anyio.move_on_after(grace_seconds, shield=True):
            for error in await artifacts.remove():
                failure.add_note(f"and rolling back what had been prepared for it failed: {error}")
        raise


def _amended(plan: CreationPlan, amend: Callable[[CreationPlan], CreationPlan]) -> CreationPlan:
    """Return a copy of the amended plan, which the caller may go on changing."""
    amended: object = amend(plan)
    if not isinstance(amended, CreationPlan):
        raise OptionsError(f"amend returned a {type(amended).__name__}, not the CreationPlan to carry out")
    return evolve(amended, document=copy.deepcopy(amended.document))


async def build_plan(options: LCOWOptions | WCOWOptions, backend: Backend, host: HostInfo) -> CreationPlan:
    """Plan the creation of a system on this host.

    :raises OptionsError: the options cannot work on this host, or one of them has no effect.
    :raises NotSupportedError: the host is too old for them, or an option is not supported yet.
    """
    given: object = options
    if not isinstance(given, Options):
        raise OptionsError(f"options are LCOWOptions or WCOWOptions, not {given!r}")
    options.check_effects()
    if options.template or options.clone_of is not None:
        _check_templates(options, host)
    if options.network_config_proxy:
        _check_proxy(options.network_config_proxy, host)
    planned = options
    files = {path: await backend.files.stat(path) for path in files_to_stat(options, host)}
    system_id = options.id or backend.new_id()
    if options.cpu_group_id and host.build < V21H1:
        # The VM is moved into the group once it runs.
        planned = evolve(options, cpu_group_id="")
    plan = plan_creation(planned, host, files, id=system_id, new_id=backend.new_id)
    await _refuse_copies_over_sources(plan, backend, host)
    return plan


def _check_templates(options: LCOWOptions | WCOWOptions, host: HostInfo) -> None:
    """Refuse templates and clones on a host that has none, of that kind of guest.

    :raises NotSupportedError: the host has none.
    """
    os: GuestOS = "linux" if isinstance(options, LCOWOptions) else "windows"
    if os not in host.templates:
        kinds = " or ".join(each.capitalize() for each in host.templates) or "no"
        raise NotSupportedError(
            f"template and clone_of: this host makes templates of {kinds} guests, not of {os.capitalize()} "
            "ones; nothing was created"
        )


def _check_proxy(path: str, host: HostInfo) -> None:
    """Refuse a network configuration proxy that cannot be asked.

    :raises OptionsError: it is at no pipe.
    :raises NotSupportedError: what it is asked with is not installed.
    """
    from uvm._ttrpc.protobuf import runtime

    if host.paths == "windows":
        pipe_path(path, "network_config_proxy")
    else:
        host_path(path, "posix", "network_config_proxy")
    runtime("message")


async def _refuse_copies_over_sources(plan: CreationPlan, backend: Backend, host: HostInfo) -> None:
    """Refuse to copy a file over itself, or over another that is copied, through links of the host."""
    copies = [step for step in plan.preparations if isinstance(step, CopyFile)]
    sources = {host_path_key(await backend.files.resolve(step.source), host.paths) for step in copies}
    for step in copies:
        target = await backend.files.resolve(step.target)
        if host_path_key(target, host.paths) in sources:
            raise OptionsError(
                f"{step.target} is {target}, which is copied itself: bundle_directory, "
                "or scratch_directory, must be apart"
            )


async def _refuse_if_there(system_id: str, backend: Backend) -> None:
    """Refuse an id that is in use before anything is done: access and files go by the id.

    :raises HostError: HCS_E_SYSTEM_ALREADY_EXISTS.
    """
    if await backend.enumerate({"Ids": [system_id]}):
        raise HostError(f"create {system_id}", HResult.HCS_E_SYSTEM_ALREADY_EXISTS)


async def _check_there(template: Template, backend: Backend) -> None:
    """Check that a template is on the host, before anything is copied.

    :raises HostError: HCS_E_SYSTEM_NOT_FOUND if it has gone; HCS_E_INVALID_STATE if it is no template.
    """
    state = await state_on_host(backend, template.vm_id)
    if state == SAVED_AS_TEMPLATE:
        return
    gone = state in ("", "Stopped")
    code = HResult.HCS_E_SYSTEM_NOT_FOUND if gone else HResult.HCS_E_INVALID_STATE
    what = "the template has gone" if gone else f"it is {state}, and was not saved as a template"
    raise HostError(f"clone {template.vm_id}", code, f"{what}; nothing was created")


async def _create(plan: CreationPlan, backend: Backend, grace_seconds: float) -> System:
    try:
        system = await backend.create(plan.id, plan.document)
        return asked(system, plan.id, SYSTEM_REQUESTS)
    except HostError:
        raise
    except BaseException as failure:
        # Cancelled, or the answer was lost: the system may exist.
        with anyio.move_on_after(grace_seconds, shield=True):
            try:
                await end_if_there(plan.id, backend)
            except Exception as error:
                failure.add_note(f"and removing what may have been created failed: {error}")
        raise


async def security_policy_request(
    options: LCOWOptions | WCOWOptions, plan: CreationPlan, backend: Backend, host: HostInfo
) -> ModificationRequest | None:
    """Return the guest's first request of a confidential VM: its policy and signed measurements.

    Source: hcsshim internal/uvm/security_policy.go. A measurement file that does not exist is left out.
    """
    if not options.security_policy_enabled:
        return None
    root = boot_directory(options, host) if isinstance(options, LCOWOptions) else options.boot_files_root_path
    # The names of a Linux VM have defaults, and empty ones mean none.
    defaults = ("", "") if isinstance(options, LCOWOptions) or not root else _REFERENCE_INFO

    async def encoded(name: str) -> str:
        if not name:
            return ""
        path = host.path.join(root, name)
        if await backend.files.stat(path) is None:
            _log.debug(plan.id, "no reference info file %s", path)
            return ""
        return base64.b64encode(await backend.files.read(path, _REFERENCE_INFO_MAX_BYTES)).decode()

    return ModificationRequest(
        request_type=ADD,
        resource_type=RESOURCE_SECURITY_POLICY,
        settings=ConfidentialOptions(
            enforcer_type=options.security_policy_enforcer,
            encoded_security_policy=options.security_policy,
            encoded_uvm_reference=await encoded(options.uvm_reference_info_file or defaults[0]),
            encoded_uvm_hash_envelope_reference=await encoded(
                options.uvm_hash_envelope_reference_info_file or defaults[1]
            ),
        ),
    )
