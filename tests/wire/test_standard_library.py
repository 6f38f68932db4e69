"""What the compute service inside a guest will share needs nothing but Python itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from pkgutil import iter_modules, walk_packages

import pytest

import uvm._wire
import uvm.agent

SHARED = [
    "uvm.errors",
    "uvm.hresult",
    "uvm._arguments",
    "uvm._names",
    "uvm._wire",
    *(module.name for module in iter_modules(uvm._wire.__path__, "uvm._wire.")),
]
AGENT = [module.name for module in walk_packages(uvm.agent.__path__, "uvm.agent.")]

#: Imports them where nothing is installed, has both ends talk, and prints all that was loaded for it.
PROGRAM = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
from uvm._wire.frames import GuestSide, HostSide, Procedure, parse
from uvm.errors import WireError
host, guest = HostSide(), GuestSide()
number, data = host.request(Procedure.START, {"ContainerId": "c"})
[request] = guest.receive(data)
assert parse(request.payload) == {"ContainerId": "c"}
[response] = host.receive(guest.respond(number, {"Result": 0}))
assert response.body == {"Result": 0}
try:
    parse(b'{"a":' * 65 + b"0" + b"}" * 65)
except WireError as error:
    assert "nests more than 64 deep" in str(error)
else:
    raise SystemExit("what nests too deeply was taken")
print(*sys.modules)
"""

#: Makes the agent as the first process of a VM does, but for what changes the machine, and prints likewise.
BOOT = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from uvm.agent import __main__ as main, boot, identity, workload
class Workload:
    start = freeze = thaw = None
    def __init__(self, total):
        pass
host, guest = socket.socketpair()
boot.mount_all = identity.renew = workload.protect_agent = lambda: None
boot.open_port = lambda modules: guest.detach()
boot.SOON = ()
workload.Workload = Workload
main._in_vm()
print(*[*sys.modules])
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python that finds no installed package, and no variables of ours."""
    command = [sys.executable, "-I", "-S", "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_both_ends_of_the_protocol_need_the_standard_library_only() -> None:
    done = run(PROGRAM, str(Path(uvm._wire.__path__[0]).parents[1]), *SHARED)
    assert done.stderr == ""
    loaded = set(done.stdout.split())
    assert set(SHARED) <= loaded
    assert "uvm._wire.frames" in loaded
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names - {"__main__", "uvm"}
    assert foreign == set()


@pytest.mark.skipif(sys.platform != "linux", reason="the agent runs on Linux only")
def test_the_agent_needs_the_standard_library_only() -> None:
    done = run(PROGRAM, str(Path(uvm._wire.__path__[0]).parents[1]), *AGENT)
    assert done.stderr == ""
    loaded = set(done.stdout.split())
    assert set(AGENT) <= loaded
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names - {"__main__", "uvm"}
    assert foreign == set()


@pytest.mark.skipif(sys.platform != "linux", reason="the agent runs on Linux only")
def test_a_boot_of_the_agent_loads_nothing_that_takes_long() -> None:
    done = run(BOOT, str(Path(uvm._wire.__path__[0]).parents[1]))
    assert done.stderr == ""
    loaded = set(done.stdout.split())
    assert {"uvm.agent.containers.commands", "uvm.agent.workload", "uvm.agent.identity"} <= loaded
    heavy = {"dataclasses", "inspect", "shutil", "tempfile", "random", "hashlib", "bz2", "lzma"}
    assert heavy & loaded == set()


def test_a_package_that_is_installed_would_be_noticed() -> None:
    for package in ("attrs", "msgspec", "anyio"):
        assert f"No module named '{package}'" in run(f"import {package}").stderr
