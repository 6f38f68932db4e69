"""Finding the process that holds a VM's memory, among all processes."""

from __future__ import annotations

import os
import sys

import pytest

from tests.backends.hcs.windows_dlls import Process, Windows
from uvm.backends.hcs.windows.workingset import WorkingSets
from uvm.errors import HostError
from uvm.hresult import HResult

VM = "5C3A1F10-2B7E-4B4E-9A77-0D3B6C0E8F21"
OTHER_VM = "00000000-1111-2222-3333-444444444444"
DOMAIN = "NT VIRTUAL MACHINE"
MIB = 1 << 20

EXPLORER = Process("\\Device\\HarddiskVolume3\\Windows\\explorer.exe", ("HOST", "user"))
WORKER = Process("\\Device\\HarddiskVolume3\\Windows\\System32\\vmwp.exe", (DOMAIN, VM))


def search(windows: Windows) -> WorkingSets:
    return WorkingSets(windows.kernel, windows.advapi)


def vmmem(runtime_id: str, megabytes: int, image: str = "vmmem") -> Process:
    return Process(image, (DOMAIN, runtime_id), working_set=megabytes * MIB)


def test_the_process_that_runs_as_the_vm_is_chosen() -> None:
    windows = Windows({4: EXPLORER, 8: vmmem(OTHER_VM, 1), 12: WORKER, 16: vmmem(VM, 700), 20: vmmem(VM, 9)})
    found = search(windows).open(VM)
    assert found.bytes() == 700 * MIB
    found.close()
    assert not windows.open


@pytest.mark.parametrize("runtime_id", [VM, VM.lower()])
@pytest.mark.parametrize("image", ["vmmem", "Vmmem", "vmmemWSL"])
def test_case_does_not_matter_nor_does_a_suffix_of_the_name(image: str, runtime_id: str) -> None:
    windows = Windows({8: vmmem(VM, 3, image)})
    found = search(windows).open(runtime_id)
    assert found.bytes() == 3 * MIB
    found.close()


def test_a_file_called_vmmem_is_not_it() -> None:
    windows = Windows({8: vmmem(VM, 3, "\\Device\\HarddiskVolume3\\vmmem.exe")})
    with pytest.raises(HostError) as failed:
        search(windows).open(VM)
    assert failed.value.hresult == HResult.ERROR_NOT_FOUND
    assert not windows.open


def test_processes_that_cannot_be_looked_at_are_passed_over() -> None:
    windows = Windows(
        {
            4: Process("System", may_open=False),
            8: Process(None),
            12: Process("vmmem", account=None),
            16: vmmem(VM, 5),
        }
    )
    found = search(windows).open(VM)
    assert found.bytes() == 5 * MIB
    assert len(windows.open) == 1
    found.close()


def test_if_there_is_none_the_error_counts_the_other_processes() -> None:
    windows = Windows({4: Process("System", may_open=False), 8: vmmem(OTHER_VM, 1), 12: Process(None)})
    with pytest.raises(HostError, match=f"{VM}.*1 of other VMs, and 2 processes that could not") as failed:
        search(windows).open(VM)
    assert failed.value.name == "ERROR_NOT_FOUND"
    assert not windows.open


def test_all_processes_are_looked_at_however_many_there_are() -> None:
    crowd = {4 * pid: EXPLORER for pid in range(1, 3000)}
    windows = Windows({**crowd, 40000: vmmem(VM, 2)})
    found = search(windows).open(VM)
    assert found.bytes() == 2 * MIB
    found.close()
    assert not windows.open


def test_once_found_it_is_not_looked_for_again() -> None:
    windows = Windows({8: vmmem(VM, 2)})
    found = search(windows).open(VM)
    windows.calls.clear()
    windows.processes[8].working_set = 3 * MIB
    assert [found.bytes(), found.bytes()] == [3 * MIB, 3 * MIB]
    assert set(windows.calls) == {"K32GetProcessMemoryInfo"}
    found.close()


def test_closing_again_does_nothing_and_asking_then_is_refused() -> None:
    windows = Windows({8: vmmem(VM, 2)})
    found = search(windows).open(VM)
    found.close()
    found.close()
    with pytest.raises(HostError, match="it was closed"):
        found.bytes()


@pytest.mark.skipif(sys.platform != "win32", reason="calls Windows itself")
class TestOnWindows:
    def test_the_working_set_of_a_process_is_read(self) -> None:
        from uvm.backends.hcs.windows.dlls import advapi32, kernel32
        from uvm.backends.hcs.windows.workingset import ProcessWorkingSet

        kernel = kernel32()
        process = kernel.functions.OpenProcess(0x1010, 0, os.getpid())
        own = ProcessWorkingSet("this process", kernel, process)
        assert own.bytes() > MIB
        own.close()
        with pytest.raises(HostError, match="it was closed"):
            own.bytes()
        assert os.getpid() in WorkingSets(kernel, advapi32())._pids()

    def test_the_name_and_the_account_of_a_process_are_read(self) -> None:
        from uvm.backends.hcs.windows.dlls import advapi32, kernel32

        kernel = kernel32()
        sets = WorkingSets(kernel, advapi32())
        process = kernel.functions.GetCurrentProcess()
        assert sets._image(process).lower().endswith(os.path.basename(sys.executable).lower())
        domain, user = sets._account(process).split("\\")
        assert user.lower() == os.environ["USERNAME"].lower()
        assert domain

    def test_a_vm_that_does_not_run_is_not_found(self) -> None:
        from uvm.backends.hcs.windows.dlls import advapi32, kernel32

        with pytest.raises(HostError) as failed:
            WorkingSets(kernel32(), advapi32()).open(VM)
        assert failed.value.hresult == HResult.ERROR_NOT_FOUND
