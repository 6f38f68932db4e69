"""Running pods: the two examples, what they show, and how failures end."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.cli.conftest import Run
from tests.cli.support import LCOW, ROOT, WCOW, paper
from uvm.backends.fake import FakeBackend, Mount
from uvm.cli.pod import run_pod
from uvm.cli.podfile import PodFile, read_pod_file
from uvm.cli.podhost import make_host
from uvm.errors import HostError

NOTHING_LEFT = "Nothing is left: no VM, no access to a file, no attached endpoint, no mount."


def fast(path: Path) -> str:
    """The text of a pod file whose host answers at once."""
    return re.sub(r"latency_ms = \d+", "latency_ms = 0", path.read_text("utf-8"))


@pytest.fixture(params=[LCOW, WCOW], ids=["linux", "windows"])
def example(request: pytest.FixtureRequest, pod_file: Callable[[str], Path]) -> Path:
    """A pod file of the examples."""
    return pod_file(fast(request.param))


def test_the_examples_leave_nothing_behind(run: Run, example: Path) -> None:
    ran = run("pod", example)
    assert (ran.status, ran.error) == (0, "")
    assert NOTHING_LEFT in ran.output


def section(output: str, title: str) -> str:
    """What stands under a heading."""
    found = re.search(rf"^── {re.escape(title)} ─+\n(.*?)(?=^── |\Z)", output, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no heading {title!r} in:\n{output}"
    return found[1]


@pytest.fixture
def linux(run: Run, pod_file: Callable[[str], Path]) -> str:
    """What running the Linux example prints."""
    return run("pod", pod_file(fast(LCOW))).output


@pytest.fixture
def windows(run: Run, pod_file: Callable[[str], Path]) -> str:
    """What running the Windows example prints."""
    return run("pod", pod_file(fast(WCOW))).output


def test_a_layer_too_large_for_vpmem_goes_to_scsi(linux: str) -> None:
    mounted = section(linux, "Mount container api: model, app, python, debian, scratch")
    assert re.search(r"host +add +Scsi 0:0 +C:\\layers\\model.vhd, read-only", mounted)
    assert re.search(r"host +add +VirtualPMem \d at .* C:\\layers\\app.vhd", mounted)
    assert not re.search(r"VirtualPMem .*model", mounted)


def test_the_second_container_sends_nothing_for_shared_layers(linux: str) -> None:
    mounted = section(linux, "Mount container metrics: exporter, python, debian, scratch")
    assert "python, debian: attached already: one more reference each, no request" in mounted
    assert "exporter.vhd" in mounted
    assert "python.vhd" not in mounted


def test_the_command_of_a_linux_container_is_its_own_process(linux: str) -> None:
    ran = section(linux, "Run echo the api is up in container api")
    mounted = section(linux, "Mount container api: model, app, python, debian, scratch")
    assert re.search(r"guest +create +container api\n", mounted)
    assert re.search(r"guest +execute +process in api\n", ran)
    assert "  the api is up\n  exit code: 0\n" in ran


def test_the_command_of_a_windows_container_is_run_in_it(windows: str) -> None:
    ran = section(windows, "Run echo the site is up in container web")
    assert re.search(r'guest +execute +process in web +echo "the site is up"\n', ran)
    assert "  the site is up\n  exit code: 0\n" in ran


def test_a_command_that_the_guest_does_not_have_ends_the_pod_and_leaves_nothing(
    run: Run, pod_file: Callable[[str], Path]
) -> None:
    ran = run("pod", pod_file(fast(LCOW).replace('"echo", "the api is up"', '"no-such-command"')))
    assert ran.status == 1
    assert "no-such-command" in ran.error
    assert "the VM is gone, and nothing is left of it" in ran.output


def test_references_to_shared_layers_are_counted(linux: str) -> None:
    attached = section(linux, "What is attached")
    assert re.search(r"C:\\layers\\debian.vhd +74 MiB +2 ", attached)
    assert re.search(r"C:\\layers\\exporter.vhd +12 MiB +1 ", attached)


def test_after_the_teardown_every_slot_is_free(linux: str) -> None:
    before, after = section(linux, "What is attached"), section(linux, "What is attached now")
    assert "SCSI  3 of 256 slots taken" in before
    assert "SCSI  0 of 256 slots taken" in after
    assert "Shares, Network, Containers  none" in after


def test_direct_mapped_shares_of_a_windows_guest_are_shown_as_kept(windows: str) -> None:
    after = section(windows, "What is attached now")
    assert re.search(r"VSMB s4 +C:\\layers\\nanoserver +read-only +kept ", after)
    assert "Network, Containers  none" in after


def test_a_windows_guest_hears_of_its_adapter_before_the_host_does(windows: str) -> None:
    title = "Create the VM, start it, and join the network namespace, with an adapter for each endpoint"
    joined = section(windows, title)
    asked = re.findall(r"^  (host|guest) +(\w+) +(\w+)", joined, re.MULTILINE)
    assert asked[-4:] == [
        ("guest", "add", "NetworkNamespace"),
        ("guest", "preadd", "Network"),
        ("host", "add", "NetworkAdapters"),
        ("guest", "add", "Network"),
    ]


def test_on_a_terminal_no_table_is_wider_than_it(
    run: Run, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    wide = [line for line in run("pod", example).lines if len(re.sub(r"\x1b\[\d+m", "", line)) > 100]
    assert wide == []


def test_output_that_is_no_terminal_has_no_escape_codes(run: Run, example: Path) -> None:
    assert "\x1b" not in run("pod", example).output


# Failures.

WITHOUT_MODEL = fast(LCOW).replace(r"'C:\layers\model.vhd' = ", r"'C:\layers\other.vhd' = ")


def test_a_failure_is_one_line_and_the_vm_is_cleaned_up(run: Run, pod_file: Callable[[str], Path]) -> None:
    ran = run("pod", pod_file(WITHOUT_MODEL))
    assert ran.status == 1
    assert ran.error == "uvm: error: C:\\layers\\model.vhd: no such file on the host\n"
    assert ran.lines[-1] == "  cleaned up: the VM is gone, and nothing is left of it"


def test_a_refused_request_is_shown_with_its_reason(pod_file: Callable[[str], Path]) -> None:
    pod = read_pod_file(pod_file(fast(LCOW)))
    backend = make_host(pod)
    backend.faults.refuse(to="host", resource="*Attachments/0", request_type="Add")
    terminal = paper()
    with pytest.raises(HostError, match="E_FAIL"):
        anyio.run(run_pod, terminal, pod, backend)
    assert isinstance(terminal.stream, io.StringIO)
    assert re.search(r"add +Scsi 0:0.*\n +refused: E_FAIL \(0x80004005\)\n", terminal.stream.getvalue())


def test_what_stays_mounted_in_the_guest_is_told(pod_file: Callable[[str], Path]) -> None:
    pod = read_pod_file(pod_file(fast(LCOW)))
    backend = make_host(pod)

    def leave_a_mount(entry: Any) -> None:
        if entry.call.resource == "CombinedLayers":
            guest = backend.vms[entry.vm].guest
            guest.mounts["/forgotten"] = Mount("/forgotten", "disk")

    backend.request_log.listen(leave_a_mount)
    terminal = paper()
    assert anyio.run(run_pod, terminal, pod, backend) == 1
    assert isinstance(terminal.stream, io.StringIO)
    assert "✗ Left behind:\n  mount in the guest: disk at /forgotten\n" in terminal.stream.getvalue()


def test_several_errors_are_one_line(
    run: Run, pod_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_host_that_revokes_nothing(pod: PodFile) -> FakeBackend:
        backend = make_host(pod)
        backend.faults.refuse(to="revoke")
        return backend

    monkeypatch.setattr("uvm.cli.podhost.make_host", make_host_that_revokes_nothing)
    ran = run("pod", pod_file(fast(LCOW)))
    assert ran.status == 1
    assert ran.error.count("\n") == 1
    assert len(set(re.findall(r"revoke C:\\[^:]+: E_FAIL \(0x80004005\)", ran.error))) == 7
    assert ran.lines[-1].startswith("  cleaned up: left behind: access of ")


class Other:
    """A backend that is not the in-memory one, as far as the command can tell."""

    name = "other"

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


def test_a_pod_runs_on_another_backend_without_its_requests(pod_file: Callable[[str], Path]) -> None:
    pod = read_pod_file(pod_file(fast(LCOW)))
    fake = make_host(pod)
    terminal = paper()
    other: Any = Other(fake)
    assert anyio.run(run_pod, terminal, pod, other) == 0
    assert isinstance(terminal.stream, io.StringIO)
    printed = terminal.stream.getvalue()
    assert "A Linux VM on the backend other" in printed
    assert "SCSI  3 of 256 slots taken" in printed
    assert "MappedVirtualDisk" not in printed
    assert fake.leftovers() == []


def test_an_unknown_backend_is_named_with_those_that_there_are(run: Run) -> None:
    ran = run("pod", LCOW, "--backend", "nosuch")
    assert ran.status == 2
    assert ran.error.startswith("uvm: error: no backend is called 'nosuch'; there are: ")
    assert "fake" in ran.error


def test_a_reader_who_leaves_early_gets_no_traceback(pod_file: Callable[[str], Path]) -> None:
    command = [sys.executable, "-m", "uvm", "pod", str(pod_file(fast(LCOW)))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_what_the_documentation_shows_runs(run: Run, pod_file: Callable[[str], Path]) -> None:
    text = ROOT.joinpath("docs", "pod-files.md").read_text("utf-8")
    [example] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert run("pod", pod_file(example)).status == 0


def test_secrets_are_not_printed(run: Run, pod_file: Callable[[str], Path]) -> None:
    policy = "bm90IGZvciB5b3VyIGV5ZXM="
    options = f'security_policy = "{policy}"\nsecurity_policy_enabled = true'
    # Under a policy a Linux guest takes no other names of containers.
    pod = fast(LCOW).replace('"api"', f'"{"a" * 64}"').replace('"metrics"', f'"{"b" * 64}"')
    ran = run("pod", pod_file(pod.replace("processors = 2", f"processors = 2\n{options}", 1)))
    assert ran.status == 0, ran.error
    assert re.search(r"guest +add +SecurityPolicy", ran.output)
    assert policy not in ran.output
