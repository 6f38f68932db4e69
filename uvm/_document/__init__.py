"""From options and facts of the host to the compute-system document. Pure: no I/O.

The plan depends on files of the host: the caller stats those that :func:`files_to_stat` names, and
:func:`plan_creation` returns the :class:`CreationPlan`. The documents are those of hcsshim 0.15
(``create_lcow.go``, ``create_wcow.go``); the tests compare recorded ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from uvm.options import LCOWOptions

if TYPE_CHECKING:
    from uvm._document.paths import Files
    from uvm._document.plan import CreationPlan
    from uvm.backend import HostInfo
    from uvm.options import WCOWOptions


def files_to_stat(options: LCOWOptions | WCOWOptions, host: HostInfo) -> tuple[str, ...]:
    """Return the host paths whose :class:`~uvm.backend.FileInfo` the plan depends on.

    :raises OptionsError: the options name no directory of boot files, and the host has no default one; or a
        path is not absolute.
    """
    if isinstance(options, LCOWOptions):
        from uvm._document.lcow import lcow_files_to_stat

        return lcow_files_to_stat(options, host)
    from uvm._document.wcow import wcow_files_to_stat

    return wcow_files_to_stat(options, host)


def plan_creation(
    options: LCOWOptions | WCOWOptions, host: HostInfo, files: Files, *, id: str, new_id: Callable[[], str]
) -> CreationPlan:
    """Plan the creation of a VM.

    :param files: what is at the paths that :func:`files_to_stat` returns; None if nothing is there.
    :param id: the compute system's id.
    :param new_id: makes the GUIDs of assigned devices.
    :raises OptionsError: the options do not fit the host, for instance a boot file that is missing.
    :raises NotSupportedError: the host lacks what the options need; the message names the build that has it.
    """
    if isinstance(options, LCOWOptions):
        from uvm._document.lcow import plan_lcow

        return plan_lcow(options, host, files, id=id, new_id=new_id)
    from uvm._document.wcow import plan_wcow

    return plan_wcow(options, host, files, id=id)
