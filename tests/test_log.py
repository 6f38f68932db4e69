"""The log of a VM: its life is legible at INFO, and each line says which VM it is about."""

from __future__ import annotations

import logging

import pytest

from tests.session import WAYS, play
from tests.vm.support import running

pytestmark = pytest.mark.anyio

SPEC = {"process": {"args": ["true"], "cwd": "/"}, "linux": {}}


async def test_a_session_is_legible_at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="uvm")
    async with running() as run:
        await run.vm.run(["true"])
        async with run.vm.create_container("k", SPEC) as container, container.open_init() as init:
            await init.wait()
            await container.wait()
    assert [(each.name, each.levelname, each.getMessage()) for each in caplog.records] == [
        ("uvm", "INFO", "vm1: created"),
        ("uvm.guest", "INFO", "vm1: GCS started"),
        ("uvm", "INFO", "vm1: started"),
        ("uvm.gcs", "INFO", "vm1: container k has exited: by itself"),
        ("uvm", "INFO", "vm1: exited: ForcedExit"),
        ("uvm", "INFO", "vm1: closed"),
    ]


@pytest.mark.parametrize("way", WAYS)
async def test_each_line_of_a_session_says_which_vm_it_is_about(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="uvm")
    os, options = WAYS[way]
    await play(lambda **held: None, os, **options)
    assert caplog.records
    assert [each.getMessage() for each in caplog.records if "vm1" not in each.getMessage()] == []
    assert [each.getMessage() for each in caplog.records if vars(each)["vm_id"] != "vm1"] == []
