"""Reading pod files: what they give, and errors that say file, table, key and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.support import LCOW, WCOW
from uvm._repr import format_size
from uvm._vm.layers import LCOWLayer, WCOWLayer
from uvm.cli.errors import UsageError
from uvm.cli.podfile import Container, MappedDirectory, read_pod_file
from uvm.cli.sizes import parse_size
from uvm.options import (
    BlockCIMBootFiles,
    HvSocketService,
    LCOWOptions,
    PCIDevice,
    RegistryValue,
    VmbFSBootFiles,
    WCOWOptions,
)

Write = Callable[[str], Path]

GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
LINUX = '[vm]\nos = "linux"\n'


def test_the_linux_example_is_read() -> None:
    pod = read_pod_file(LCOW)
    assert isinstance(pod.options, LCOWOptions)
    assert (pod.os, pod.options.memory_mb, pod.options.scsi_controllers) == ("linux", 2048, 4)
    assert pod.layers["model"] == LCOWLayer(r"C:\layers\model.vhd")
    assert pod.host.files[r"C:\layers\model.vhd"] > 4 << 30
    assert pod.containers[1] == Container(
        "metrics", ("exporter", "python", "debian"), r"C:\scratch\metrics.vhdx"
    )
    assert pod.mapped_directories == (MappedDirectory(r"C:\pods\api\config", "/etc/api", True),)


def test_the_windows_example_is_read() -> None:
    pod = read_pod_file(WCOW)
    assert isinstance(pod.options, WCOWOptions)
    assert isinstance(pod.options.boot_files, VmbFSBootFiles)
    assert pod.layers["iis"] == WCOWLayer(r"C:\layers\iis", "81d3f7a0-6c2e-5f57-a1c4-0b7d52e4c602")


def test_an_endpoint_becomes_its_hcn_document(pod_file: Write) -> None:
    [endpoint] = read_pod_file(
        pod_file(
            LINUX + f'[[host.endpoints]]\nid = "{GUID}"\naddress = "fd00::5/64"\ngateway = "fd00::1"\n'
            'dns = ["fd00::a"]\ndomain = "local"\n'
        )
    ).host.endpoints
    assert endpoint.document() == {
        "ID": GUID,
        "Name": "",
        "MacAddress": "",
        "Dns": {"Domain": "local", "ServerList": ["fd00::a"]},
        "IpConfigurations": [{"IpAddress": "fd00::5", "PrefixLength": 64}],
        "Routes": [{"NextHop": "fd00::1", "DestinationPrefix": "::/0"}],
    }


def test_options_that_are_classes_are_tables(pod_file: Write) -> None:
    linux = read_pod_file(
        pod_file(
            LINUX + "[[vm.assigned_devices]]\ninstance_path = 'PCIP\\1'\nfunction = 2\n"
            f"[vm.hvsocket_services.{GUID}]\nallow_wildcard_binds = true\n"
        )
    ).options
    assert isinstance(linux, LCOWOptions)
    assert linux.assigned_devices == (PCIDevice("PCIP\\1", 2),)
    assert linux.hvsocket_services == {GUID: HvSocketService(allow_wildcard_binds=True)}

    windows = read_pod_file(
        pod_file(
            '[vm]\nos = "windows"\nsecurity_policy_enabled = true\nguest_state_file = "g.vmgs"\n'
            "[vm.boot_files]\nboot_cim_vhd_path = 'c'\nefi_vhd_path = 'e'\nscratch_vhd_path = 's'\n"
            "[[vm.registry_values]]\nhive = 'System'\nkey = 'K'\n"
        )
    ).options
    assert isinstance(windows, WCOWOptions)
    assert windows.registry_values == (RegistryValue(hive="System", key="K"),)
    assert windows.boot_files == BlockCIMBootFiles(
        boot_cim_vhd_path="c", efi_vhd_path="e", scratch_vhd_path="s"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", "is not TOML: Invalid value (at end of document)"),
        pytest.param("x = " + "[" * 9999, "is not TOML: maximum recursion depth exceeded", id="too deep"),
        ("", "[vm]: os must be 'linux' or 'windows', not 'missing'"),
        ("vm = 1", "[vm]: must be a table, not 1"),
        ("[vm]\nmemory_mb = 1024", "[vm]: os must be 'linux' or 'windows', not 'missing'"),
        ('[vm]\nos = "mac"', "[vm]: os must be 'linux' or 'windows', not 'mac'"),
        (
            f"{LINUX}[scratch]",
            "scratch is unknown here; the keys are vm, host, layers, containers, mapped_directories",
        ),
        (f"{LINUX}memory = 1", "[vm]: memory is unknown here; did you mean memory_mb?"),
        (f"{LINUX}os_files = 1", "[vm]: os_files is unknown here; did you mean"),
        (
            f'{LINUX}memory_mb = "2"',
            "[vm]: memory_mb must be a whole number from 0 to 18446744073709551614, not '2'",
        ),
        (
            f"{LINUX}deferred_commit = true\nallow_overcommit = false",
            "[vm]: deferred_commit needs virtual memory, but allow_overcommit=False asks for physical memory",
        ),
        ('[vm]\nos = "windows"', "[vm]: boot_files is missing"),
        ('[vm]\nos = "windows"\nboot_files = {os_files_path = "a"}', "[vm.boot_files]: os_relative_boot"),
        (f"{LINUX}assigned_devices = [1]", "[[vm.assigned_devices]] 1: must be a table, not 1"),
        (
            f'{LINUX}assigned_devices = "x"',
            "[vm]: assigned_devices must be written as tables [[vm.assigned_devices]], not as 'x'",
        ),
        (
            f"{LINUX}[vm.hvsocket_services.{GUID}]\nbind = 1",
            f"[vm.hvsocket_services.{GUID}]: bind is unknown here; ",
        ),
        (
            f"{LINUX}[host]\nbuild = true",
            "[host]: build must be a whole number from 1 to 4294967295, not True",
        ),
        (
            f"{LINUX}[host]\nprocessors = 0",
            "[host]: processors must be a whole number from 1 to 4294967295, not 0",
        ),
        (f'{LINUX}[host]\nmachine = "arm"', "[host]: machine must be 'amd64' or 'arm64', not 'arm'"),
        (
            f"{LINUX}[host]\ndirectories = [1]",
            "[host]: directories must be a sequence, each item a string",
        ),
        (
            f'{LINUX}[host.files]\na = "4 MB"',
            "[host.files]: 'a': '4 MB' is not a size such as '4 MiB' or '4M' (B, KiB, MiB, GiB, TiB)",
        ),
        (f"{LINUX}[host.files]\na = -1", "[host.files]: 'a' must be a size such as '4 MiB', or a number"),
        (
            f'{LINUX}[[host.namespaces]]\nid = "x"',
            f"[[host.namespaces]] 1: id must be a GUID such as {GUID}, not 'x'",
        ),
        (
            f'{LINUX}[[host.endpoints]]\nid = "{GUID}"\naddress = "10.0.0.300"',
            "[[host.endpoints]] 1: address must be an IP address such as '10.0.0.4/24', not '10.0.0.300'",
        ),
        (f"{LINUX}[network]", "[network]: namespace must be a GUID such as"),
        (f'{LINUX}[host]\ndirectories = "C:"', "[host]: directories must be a sequence, not 'C:'"),
        (
            f'{LINUX}[[containers]]\nid = "c"\nlayers = "a"\nscratch = "s"',
            "[[containers]] 1: layers must be a sequence, not 'a'",
        ),
        (
            f'{LINUX}[[containers]]\nid = "c"\nlayers = ["a"]\nscratch = "s"\ncommand = "echo"',
            "[[containers]] 1: command must be a sequence, not 'echo'",
        ),
        (f'{LINUX}[network]\nname = "x"', "[network]: name is unknown here; did you mean namespace?"),
        (
            f'{LINUX}[[layers]]\nname = "a"',
            "[[layers]] 1: path is missing; the keys are name, path, partition",
        ),
        (
            f'{LINUX}layers = 1\n[[containers]]\nid = "a"',
            "[vm]: layers is unknown here; ",
        ),
        (
            f'{LINUX}[[layers]]\nname = "a"\npath = "p"\n[[layers]]\nname = "a"\npath = "q"',
            "[[layers]] 2: name 'a' is that of another layer",
        ),
        (
            f'{LINUX}[[layers]]\nname = "a"\npath = "p"\nid = "{GUID}"',
            "[[layers]] 1: id is unknown here; the keys are name, path, partition",
        ),
        (
            f'{LINUX}[[containers]]\nid = "a"\nlayers = ["b"]\nscratch = "s"',
            "[[containers]] 1: layers: there is no layer 'b'; there are none",
        ),
        (
            f'{LINUX}[[containers]]\nid = "a"\nlayers = []\nscratch = "s"',
            "[[containers]] 1: layers is empty; a container has one layer at least",
        ),
        (
            f'{LINUX}[[mapped_directories]]\nhost = "a"\nguest = "b"\nread_only = 1',
            "[[mapped_directories]] 1: read_only must be True or False, not 1",
        ),
    ],
)
def test_an_error_says_where_and_what_is_allowed(pod_file: Write, text: str, message: str) -> None:
    path = pod_file(text)
    with pytest.raises(UsageError) as caught:
        read_pod_file(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_wrong_file_is_one_line_and_exit_status_2(run: Run, pod_file: Write, tmp_path: Path) -> None:
    wrong = run("pod", pod_file("[vm]\n"))
    assert wrong.status == 2
    assert (
        wrong.error
        == f"uvm: error: {tmp_path / 'pod.toml'}: [vm]: os must be 'linux' or 'windows', not 'missing'\n"
    )
    missing = run("pod", tmp_path / "no.toml")
    assert (missing.status, missing.output) == (2, "")
    assert missing.error == f"uvm: error: {tmp_path / 'no.toml'}: No such file or directory\n"


def test_what_is_not_text_is_told(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pod.toml"
    path.write_bytes(b"[vm]\n\xff")
    ran = run("pod", path)
    assert (ran.status, ran.error) == (2, f"uvm: error: {path}: not UTF-8 at byte 5\n")


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "pod.toml"
    path.write_bytes(b"\xef\xbb\xbf" + LCOW.read_bytes())
    assert read_pod_file(path).options == read_pod_file(LCOW).options


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ("[host]\ndirectories = ['C:\\a']\n[host.files]\n'C:\\a' = 1", "[host]: C:\\a is a directory"),
        (f'[[host.namespaces]]\nid = "{GUID}"\n' * 2, f"[host]: add namespace {GUID}: ERROR_ALREADY_EXISTS"),
    ],
)
def test_a_host_that_cannot_be_is_an_error_of_the_file(
    run: Run, pod_file: Write, setup: str, message: str
) -> None:
    path = pod_file(LINUX + setup)
    ran = run("pod", path)
    assert ran.status == 2
    assert ran.error.startswith(f"uvm: error: {path}: {message}")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0 B", 0),
        ("100B", 100),
        ("512 KiB", 524_288),
        ("4 MiB", 4 << 20),
        ("1.5 GiB", 3 << 29),
        ("2 TiB", 2 << 40),
    ],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["4", "4 MB", "MiB", "-1 MiB", "1.5.5 MiB", "1e3 B", ""])
def test_other_ways_to_write_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as '4 MiB'"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (5 << 28, "1.25 GiB"),
        (310 << 20, "310 MiB"),
        (10 << 40, "10 TiB"),
    ],
)
def test_sizes_are_written_in_the_largest_unit(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
