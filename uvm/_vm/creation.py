"""From options to a compute system: what is done on the host before one exists, and with its guest first.

Whatever fails or is cancelled on the way is taken back here.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Sequence

import anyio
from attrs import define, field, frozen

from uvm._buses.access import Access
from uvm._buses.context import Context
from uvm._buses.driver import is_refusal
from uvm._buses.link import Link
from uvm._document import (
    CopyFile,
    CreationPlan,
    GrantAccess,
    MakeDirectory,
    Preparation,
    SetDiskId,
    boot_directory,
    files_to_look_at,
    plan_creation,
)
from uvm.backend import VM_GROUP, Backend, Concurrency, HostInfo, System
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.options import LCOWOptions, WCOWOptions
from uvm.schema.guest import ConfidentialOptions
from uvm.schema.requests import ADD, ModificationRequest

_log = logging.getLogger("uvm")


#: A signed measurement is a few KiB; anything near this is not one.
_REFERENCE_INFO_MAX_BYTES = 1 << 20


@define
class HostArtifacts:
    """The grants and files of one VM on its host, which closing it undoes.

    :ivar grants: paths to which the VM itself was granted access. Grants to the VM group are shared with
        other VMs and stay.
    :ivar files: files that were made for this VM alone.
    """

    grants: list[str] = field(factory=list)
    files: list[str] = field(factory=list)


@frozen
class Settings:
    """How a VM is to be created, beside its options.

    :ivar concurrency: in place of what the host says.
    :ivar amend: has the last word on the plan.
    :ivar grace_seconds: how long to wait for what hangs, when something has to be taken back or ended.
    """

    concurrency: Concurrency | None
    amend: Callable[[CreationPlan], CreationPlan] | None
    grace_seconds: float


async def create(
    options: LCOWOptions | WCOWOptions, backend: Backend, settings: Settings
) -> tuple[Context, System, HostArtifacts]:
    """Create a compute system for options, with what its devices need to know, and what it left on the host.

    Where it fails or is cancelled, nothing stays behind.
    """
    host = await backend.host()
    plan = await build_plan(options, backend, host)
    if settings.amend is not None:
        plan = settings.amend(plan)
    artifacts = HostArtifacts()
    system = await create_system(plan, backend, artifacts, settings.grace_seconds, fresh_id=not options.id)
    link = Link(plan.id, system, exit_grace_seconds=settings.grace_seconds)
    concurrency = settings.concurrency or host.concurrency
    context = Context(backend, host, options, plan, concurrency, link, Access(backend, link))
    return context, system, artifacts


async def build_plan(options: LCOWOptions | WCOWOptions, backend: Backend, host: HostInfo) -> CreationPlan:
    """Look at the host and decide everything about the system to create.

    :raises OptionsError: the options cannot work on this host.
    :raises NotSupportedError: the host is too old for them.
    """
    files = {path: await backend.files.stat(path) for path in files_to_look_at(options, host)}
    system_id = options.id or backend.new_id()
    return plan_creation(options, host, files, id=system_id, new_id=backend.new_id)


async def perform(
    steps: Sequence[Preparation], plan: CreationPlan, backend: Backend, artifacts: HostArtifacts
) -> None:
    """Do on the host what a plan asks for, noting what is to be taken back."""
    for step in steps:
        match step:
            case CopyFile(source, target):
                await _copy(source, target, plan, backend, artifacts)
            case MakeDirectory(path):
                await backend.files.mkdir(path)
            case SetDiskId(path, disk_id):
                await backend.files.set_disk_id(path, disk_id)
            case GrantAccess(path, to_vm_group, mask):
                if not to_vm_group:
                    artifacts.grants.append(path)
                await backend.grant_access(path, VM_GROUP if to_vm_group else plan.id, mask)


async def _copy(
    source: str, target: str, plan: CreationPlan, backend: Backend, artifacts: HostArtifacts
) -> None:
    made_for_it = target in plan.leftovers
    if made_for_it:
        artifacts.files.append(target)
    try:
        await backend.files.copy(source, target)
    except Exception as error:
        if made_for_it and is_refusal(error):
            # Whatever is there is not ours.
            artifacts.files.remove(target)
        raise


async def take_back(artifacts: HostArtifacts, backend: Backend, vm_id: str) -> list[Exception]:
    """Revoke and remove what was left on the host; gives the errors of what could not be."""
    errors: list[Exception] = []
    for path in artifacts.grants:
        try:
            await backend.revoke_access(path, vm_id)
        except Exception as error:
            errors.append(error)
    for path in artifacts.files:
        try:
            await backend.files.remove(path)
        except Exception as error:
            errors.append(error)
    return errors


async def create_system(
    plan: CreationPlan, backend: Backend, artifacts: HostArtifacts, grace_seconds: float, *, fresh_id: bool
) -> System:
    """Prepare the host and create the system. Where it fails or is cancelled, nothing stays behind.

    :param fresh_id: nobody else can have a system of that id.
    """
    if not fresh_id:
        await _refuse_if_there(plan.id, backend)
    try:
        await perform(plan.preparations, plan, backend, artifacts)
        return await _create(plan, backend, grace_seconds)
    except BaseException as failure:
        with anyio.move_on_after(grace_seconds, shield=True):
            for error in await take_back(artifacts, backend, plan.id):
                failure.add_note(f"and taking back what had been done for it failed: {error}")
        raise


async def _refuse_if_there(system_id: str, backend: Backend) -> None:
    """Refuse an id that is in use before anything is done: access and files go by the id.

    :raises HostError: HCS_E_SYSTEM_ALREADY_EXISTS.
    """
    if await backend.enumerate({"Ids": [system_id]}):
        raise HostError(f"create {system_id}", HResult.HCS_E_SYSTEM_ALREADY_EXISTS)


async def _create(plan: CreationPlan, backend: Backend, grace_seconds: float) -> System:
    try:
        return await backend.create(plan.id, plan.document)
    except HostError:
        raise
    except BaseException as failure:
        # Cancelled, or the answer was lost: it may be there all the same.
        with anyio.move_on_after(grace_seconds, shield=True):
            try:
                await _remove_if_there(plan.id, backend)
            except Exception as error:
                failure.add_note(f"and removing what may have been created failed: {error}")
        raise


async def _remove_if_there(system_id: str, backend: Backend) -> None:
    try:
        system = await backend.open(system_id)
    except HostError as error:
        if error.hresult != HResult.HCS_E_SYSTEM_NOT_FOUND:
            raise
        return
    try:
        await system.terminate()
    finally:
        await system.close()


async def security_policy_request(
    options: LCOWOptions | WCOWOptions, plan: CreationPlan, backend: Backend, host: HostInfo
) -> ModificationRequest | None:
    """Make the guest's first request of a confidential VM: its policy and signed measurements.

    Source: hcsshim internal/uvm/security_policy.go. A measurement file that does not exist is left out.
    """
    if not options.security_policy_enabled:
        return None
    root = ""
    if isinstance(options, LCOWOptions):
        root = boot_directory(options, host)

    async def encoded(name: str) -> str:
        if not name:
            return ""
        path = host.path.join(root, name) if root else name
        if await backend.files.stat(path) is None:
            _log.debug("%s: no reference info file %s", plan.id, path)
            return ""
        return base64.b64encode(await backend.files.read(path, _REFERENCE_INFO_MAX_BYTES)).decode()

    return ModificationRequest(
        request_type=ADD,
        resource_type="SecurityPolicy",
        settings=ConfidentialOptions(
            enforcer_type=options.security_policy_enforcer,
            encoded_security_policy=options.security_policy,
            encoded_uvm_reference=await encoded(options.uvm_reference_info_file),
            encoded_uvm_hash_envelope_reference=await encoded(options.uvm_hash_envelope_reference_info_file),
        ),
    )
