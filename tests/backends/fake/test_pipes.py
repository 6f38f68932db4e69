"""The pipes of the fake's host; for what holds for all hosts see the scenarios of ``uvm.testing``."""

from __future__ import annotations

import pytest

from uvm.backend import HostInfo
from uvm.backends.fake import FakeBackend
from uvm.errors import HostError, OptionsError

pytestmark = pytest.mark.anyio


async def test_a_posix_host_has_unix_sockets() -> None:
    backend = FakeBackend(host=HostInfo(paths="posix"))
    listener = await backend.pipes.listen("/run/proxy.sock")
    assert backend.pipes.listened_at == ("/run/proxy.sock",)
    with pytest.raises(HostError, match="E_ACCESSDENIED"):
        await backend.pipes.listen("/run//proxy.sock")
    client = await backend.pipes.dial("/run/./proxy.sock")
    await client.send(b"x")
    assert await (await listener.accept()).receive() == b"x"
    with pytest.raises(OptionsError):
        await backend.pipes.dial(r"\\.\pipe\proxy")


async def test_a_pipe_that_is_listened_at_is_left_over() -> None:
    backend = FakeBackend()
    listener = await backend.pipes.listen(r"\\.\pipe\proxy")
    assert backend.leftovers() == [r"pipe \\.\pipe\proxy, listened at"]
    await listener.aclose()
    assert backend.leftovers() == []
