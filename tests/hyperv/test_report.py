"""The report of ``tests.hyperv``: what it has, and that nothing in it is private."""

from __future__ import annotations

import getpass
import json
import platform
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uvm
from tests.hyperv.conftest import USABLE
from tests.hyperv.host import Means, Wanted
from tests.hyperv.report import Machine, Scrubber, report, summary, write
from uvm.backend import HostInfo
from uvm.testing.backends import SCENARIOS, Control
from uvm.testing.backends.play import Played

NAMES = st.text(string.ascii_letters + string.digits, min_size=4, max_size=12)
GUID = "0d2b5b58-7c11-4f3a-8a0d-5e9f4a1c6d21"


def scrubbed(text: str, **known: str) -> str:
    return Scrubber({private: what for what, private in known.items()})(text)


def test_private_names_are_replaced_by_what_they_are() -> None:
    said = scrubbed("alice of PC7 may not, says pc7", user="alice", machine="PC7")
    assert said == "<user> of <machine> may not, says <machine>"


def test_a_name_within_a_word_is_none() -> None:
    assert scrubbed("permalice", user="alice") == "permalice"
    assert scrubbed("vm_alice_1", user="alice") == "vm_<user>_1"


def test_directories_are_found_however_they_are_spelled() -> None:
    for spelled in ("C:\\Users\\alice\\x.vhd", "c:\\\\users\\\\ALICE\\\\x.vhd", "C:/Users/alice/x.vhd"):
        assert scrubbed(f"open {spelled}: no", home="C:\\Users\\alice") in (
            "open <home>\\x.vhd: no",
            "open <home>\\\\x.vhd: no",
            "open <home>/x.vhd: no",
        )


def test_of_other_paths_the_last_name_stays() -> None:
    assert scrubbed("open D:\\Contoso Ltd\\secret\\vmlinux: no") == "open <path>\\vmlinux: no"
    assert scrubbed("'\\\\\\\\fs01\\\\share\\\\base.vhd'") == "'<path>\\\\base.vhd'"
    assert scrubbed("C:\\a\\b.vhd and D:\\c\\d.vhd").count("<path>") == 2


def test_of_what_is_below_a_known_directory_the_last_name_stays() -> None:
    known = {"home": "C:\\Users\\alice", "directory": "D:\\layers\\base\\", "user": "alice"}
    assert scrubbed("open c:/users/alice/Contoso merger/secret/x.vhd: no", **known) == "open <home>/x.vhd: no"
    assert scrubbed("no layer in D:\\layers\\base", **known) == "no layer in <directory>"
    assert scrubbed("D:\\layers\\base\\secret\\x and", **known) == "<directory>\\x and"
    assert scrubbed("D:\\alice\\secret\\x.vhd", **known) == "<path>\\x.vhd"


@pytest.mark.parametrize(
    "path",
    [
        "D:\\O'Brien\\secret\\",
        "D:\\Smith, John\\a;b\\secret\\",
        "D:\\Smith, John's; other\\",
        "\\Device\\HarddiskVolume3\\Contoso\\secret\\",
        "\\??\\D:\\secret\\",
        "\\\\?\\D:\\secret\\",
        "\\\\?\\UNC\\fs01\\share\\secret\\",
        f"\\\\?\\Volume{{{GUID}}}\\secret\\",
        "\\\\10.0.0.1\\share\\",
        "//fs01/share/secret/",
    ],
)
def test_paths_are_found_whatever_they_begin_with_and_their_names_have(path: str) -> None:
    assert scrubbed(f"open {path}x.vhd: no") == f"open <path>{path[-1]}x.vhd: no"


def test_what_is_no_path_of_the_host_stays() -> None:
    for said in (
        "mount sandbox://a/b",
        "uvm:///proc/version",
        "no /run/gcs/c/config.json",
        "read/write of a\\b",
    ):
        assert scrubbed(said) == said


def test_ids_are_numbered_and_addresses_are_none() -> None:
    scrub = Scrubber()
    assert scrub(f"VM {GUID} and {GUID.upper()}") == "VM <id 1> and <id 1>"
    assert scrub("5b0f7a53-0c0e-4f0c-9d4e-6f1b7a2e8c90") == "<id 2>"
    assert scrub(f"vm_{GUID}_x") == "vm_<id 1>_x"
    assert scrub("00-15-5D-52-C0-20, 10.244.3.17/24, fe80::1") == "<mac>, <address>/24, <address>"
    assert scrub("00155D52C020 nic_00155d52c020") == "<mac> nic_<mac>"
    assert scrub("S-1-5-21-1004336348-1177238915-682003330-512") == "<sid>"
    assert scrub("s-1-12-1-1004336348-1177238915-682003330-512") == "<sid>"
    assert scrub("S-1-5-18 and S-1-5-32-544 are everywhere") == "S-1-5-18 and S-1-5-32-544 are everywhere"


#: In a name of a directory, between two that are looked for.
BETWEEN = st.text(string.ascii_letters + string.digits + " ',;.-_()&+!@#$%^=[]{}~`é", max_size=12)
ROOTS = st.sampled_from(
    [
        *("D:", r"\\fs01", "//fs01", r"\\?\D:", r"\\?\UNC\fs01", r"\\.\pipe", r"\Device\Mup", r"\??\D:"),
        *(r"C:\Users\alice", "c:/users/ALICE", r"E:\layers", r"\\?\C:\Users\alice", r"D:\alice"),
    ]
)
KNOWN = {"home": "C:\\Users\\alice", "user": "alice", "directory": "E:\\layers\\"}


@given(
    root=ROOTS,
    between=st.lists(BETWEEN, min_size=1, max_size=4),
    separator=st.sampled_from(["\\", "\\\\", "/"]),
    text=st.text(sorted({*string.printable} - {*"qQ"}), max_size=40),
)
def test_of_any_path_nothing_but_the_last_name_is_left(
    root: str, between: list[str], separator: str, text: str
) -> None:
    names = [f"Qq{each}qQ" for each in between]
    path = separator.join([root, *names, "last.vhd"])
    left = scrubbed(f"{text} {path}: {text}", **KNOWN)
    assert "q" not in left.casefold()
    assert "last.vhd: " in left


def test_what_was_scrubbed_stays_as_it_is_whatever_the_names_are() -> None:
    scrub = Scrubber({r"C:\Users\path": "home", "path": "user", "home": "machine", "id": "domain"})
    once = scrub(rf"C:\Users\path\a\b.vhd: path of home in id may not open D:\path\a\c.vhd, {GUID}")
    assert once == r"<home>\b.vhd: <user> of <machine> in <domain> may not open <path>\c.vhd, <id 1>"
    assert scrub(once) == once


@given(user=NAMES, machine=NAMES, directory=NAMES, text=st.text(string.printable, max_size=40))
def test_whatever_is_said_nothing_private_is_left(user: str, machine: str, directory: str, text: str) -> None:
    home = f"C:\\Users\\{user}"
    said = f"{text} {home}\\{directory}\\x.vhd {user.upper()} D:\\{directory}\\y.vhd {machine} {text}"
    left = scrubbed(said, home=home, user=user, machine=machine).casefold()
    for kind in ("home", "user", "machine", "path"):
        left = left.replace(f"<{kind}>", "")
    outside = text.casefold() * 2 + "x.vhd y.vhd"
    for private in (user, machine):
        assert private.casefold() not in left.split() or private.casefold() in outside
    assert f"d:\\{directory}\\".casefold() not in left


def test_the_names_of_this_machine_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERDNSDOMAIN", "corp.contoso.example")
    assert Scrubber.of_this_machine()("pc7.CORP.contoso.example") == "pc7.<domain>"
    scrub = Scrubber.of_this_machine(["/srv/boot"])
    left = scrub(f"{getpass.getuser()} {platform.node()} {Path.home()} {Path.cwd()} /srv/boot/vmlinux")
    assert set(left.replace("/vmlinux", "").split()) <= {
        *("<user>", "<machine>", "<home>", "<checkout>", "<directory>", "<domain>"),
    }


def made() -> dict[str, object]:
    means = Means(uvm.FakeBackend, Wanted(), frozenset({Control.FILES}), ("links: no",))
    first, second, third = SCENARIOS[:3]
    played = [
        (Played(first, "holds"), 0.25),
        (Played(second, "fails", f"HostError: open {Path.home()}: no"), 3.0),
        (Played(third, "skipped", "links"), 0.0),
    ]
    machine = Machine(USABLE, HostInfo(build=26100))
    return report(machine, means, played, Scrubber.of_this_machine())


def test_the_report_has_the_versions_the_checks_and_each_scenario(tmp_path: Path) -> None:
    write(made(), tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (found["uvm"], found["windows"]) == (uvm.__version__, {"build": 26100, "machine": "amd64"})
    assert found["checks"] == {"Windows": ["ok", "Windows"]}
    assert found["outcomes"] == {"holds": 1, "fails": 1, "skipped": 1}
    assert [each["outcome"] for each in found["scenarios"]] == ["holds", "fails", "skipped"]
    assert found["scenarios"][1]["why"] == "HostError: open <home>: no"


def test_the_summary_counts_and_names_what_failed_and_what_was_not_played() -> None:
    counted, failed, lacked = summary(made())
    assert counted.endswith("Windows build 26100: 1 holds, 1 fails, 1 skipped")
    assert failed == f"- {SCENARIOS[1].name}: HostError: open <home>: no"
    assert lacked == "- not played: links: no"
