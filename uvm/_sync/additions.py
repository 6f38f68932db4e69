"""What only :mod:`uvm.sync` has, as its faces are made of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Unpack

from uvm._vm.keeper import started
from uvm._vm.keywords import CreationSettings, check_settings
from uvm._vm.vm import UtilityVM

if TYPE_CHECKING:
    from uvm.backend import Backend
    from uvm.options import LCOWOptions, Template, WCOWOptions


@asynccontextmanager
async def create_vm(
    options: LCOWOptions | WCOWOptions, *, backend: Backend | str, **settings: Unpack[CreationSettings]
) -> AsyncIterator[UtilityVM]:
    """Create and start a VM in a ``with`` statement, and close it at the end of that.

    As :func:`start_vm`, but nothing is done before the ``with`` statement: ctrl-C, whenever it comes, leaves
    no VM behind. For a VM that is not started at once there is ``UtilityVM.create``.

    :param backend: a backend, or the name of one, which is opened for the VM and closed with it.
    :param settings: the other keywords of :meth:`uvm.UtilityVM.create`, whose errors it raises, and those of
        :meth:`uvm.UtilityVM.start`.
    """
    check_settings(settings, "create_vm")
    async with started(options, backend, settings) as vm:
        yield vm


async def delete_template(template: Template, backend: Backend) -> None:
    """Delete a template: :meth:`uvm.Template.delete`, since a template is a value, which has no face."""
    await template.delete(backend)
