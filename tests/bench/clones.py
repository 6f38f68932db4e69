"""A clone of a template against a VM that boots: Windows guests on the fake, in time and in requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import anyio
from attrs import evolve

from tests.bench.figures import Figure, Span
from tests.bench.vms import LOOPS
from uvm import FakeBackend, UtilityVM, VmbFSBootFiles, WCOWOptions
from uvm.backends.fake import FakeFiles

__all__ = ["clones"]

_LIVES: Final = 200
_OPTIONS: Final = WCOWOptions(
    boot_files=VmbFSBootFiles(
        os_files_path="C:\\os",
        os_relative_boot_directory="\\EFI\\Microsoft\\Boot",
        scratch_vhd_path="C:\\vm\\scratch.vhdx",
    ),
    template=True,
)


def clones() -> Iterator[Figure]:
    """Create a VM, start it and close it: one that boots, and a clone."""
    for loop in LOOPS:
        for what, cloned in {"one Windows VM": False, "one clone of a template": True}.items():
            took, requests = anyio.run(_lives, cloned, backend=loop)
            yield Figure.of_seconds(
                f"{what} on the fake: create, start, close",
                "ms",
                # The first is for what is made once.
                [each.wall for each in took[1:]],
                loop=loop,
                note=f"{requests} requests to host and guest",
            )


def _host() -> FakeBackend:
    files = FakeFiles()
    files.add_directory("C:\\os")
    files.add_directory("C:\\clones")
    files.add("C:\\vm\\scratch.vhdx", size=1 << 20)
    return FakeBackend(files=files)


async def _lives(cloned: bool) -> tuple[list[Span], int]:
    """Return what each took, and how many requests the last one made."""
    backend = _host()
    if not cloned:
        return await _measured(evolve(_OPTIONS, template=False), backend)
    async with UtilityVM.create(_OPTIONS, backend=backend) as vm:
        await vm.start()
        template = await vm.save_template()
        of_clone = evolve(_OPTIONS, template=False, clone_of=template, scratch_directory="C:\\clones\\one")
        return await _measured(of_clone, backend)


async def _measured(options: WCOWOptions, backend: FakeBackend) -> tuple[list[Span], int]:
    took: list[Span] = []
    requests = 0
    for _ in range(1 + _LIVES):
        backend.request_log.clear()
        with Span.measured(took):
            async with UtilityVM.create(options, backend=backend) as vm:
                await vm.start()
        requests = len(backend.request_log)
    return took, requests
