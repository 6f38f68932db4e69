"""When two names are one, and when they are two."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from uvm._names import (
    guest_path,
    guest_path_key,
    guid_key,
    host_path,
    host_path_key,
    pci_key,
    pipe_key,
    pipe_path,
    text_of,
    windows_upper,
)
from uvm.errors import OptionsError

GUID = "7f2c1c0e-5d0a-4c3e-9b1f-2a60d0a3e7b4"


def windows_key(path: str) -> str:
    return host_path_key(path, "windows")


def posix_key(path: str) -> str:
    return host_path_key(path, "posix")


# Windows paths, by example: the key, and spellings of one path.
ONE_PATH = {
    r"C:\VM\DATA.VHDX": [
        r"C:\vm\data.vhdx",
        "c:/VM/Data.vhdx",
        r"C:\\vm\/data.vhdx\\",
        r"C:\vm\.\data.vhdx\.",
        r"C:\..\vm\x\..\data.vhdx",
        r"C:\vm.\data.vhdx",
        r"C:\vm\data.vhdx. . ",
        r"\\?\C:\vm\data.vhdx",
        r"\\?\C:\vm\\data.vhdx" "\\",
        r"\??\C:\vm\data.vhdx",
        r"\\.\C:\vm\data.vhdx",
        "//./C:/vm/./data.vhdx.",
        "//?/C:/vm/data.vhdx",
        r"\\.\D:\..\C:\vm\data.vhdx",
    ],
    "C:\\": [
        "C:\\",
        "c:/",
        r"C:\.",
        r"C:\..",
        r"C:\...",
        r"C:\a\..",
        "\\\\?\\c:\\",
        "\\\\.\\C:\\\\",
        "C:\\. ",
    ],
    r"\\.\C:": [r"\\.\c:", r"\\?\C:", r"\??\C:", "//./C:"],
    r"\\.\PHYSICALDRIVE2": [r"\\.\PhysicalDrive2", r"\\?\PHYSICALDRIVE2", "//./physicaldrive2/"],
    "\\\\.\\VOLUME{1}\\": ["\\\\?\\Volume{1}\\", "\\\\.\\volume{1}\\\\"],
    r"\\.\VOLUME{1}": [r"\\?\Volume{1}"],
    r"\\.\VOLUME{1}\A": [r"\\?\Volume{1}\a", r"\\.\Volume{1}\a" "\\"],
    "\\\\SERVER\\SHARE\\": [
        r"\\server\share",
        "//Server/Share/",
        r"\\?\UNC\server\share",
        r"\\server\share\a\..",
    ],
    r"\\SERVER\SHARE\A": [
        r"\\server\share\a",
        "//server//share/./a/",
        r"\\server\share\..\..\a.",
        r"\\?\unc\server\share\a",
        r"\\.\UNC\server\share\a",
    ],
    # What only a verbatim path can name is spelled as one.
    r"\\?\C:\A.": [r"\\?\C:\a.", r"\??\c:\a.", r"\\?\C:\A." "\\"],
    "\\\\?\\C:\\A ": ["\\\\?\\C:\\a ", "C:\\a \\"],
    r"\\?\C:\A\..\B": [r"\\?\C:\a\..\b"],
    r"\\?\C:\A/B": [r"\\?\C:\a/b"],
    r"C:\A \B": [r"C:\a \b", r"\\?\C:\a \b"],
    r"\\?\UNC\SERVER\SHARE\A.": [r"\\?\UNC\server\share\a."],
    r"C:\STRASSE": [r"C:\strasse"],
    "C:\\STRA\N{LATIN SMALL LETTER SHARP S}E": ["C:\\stra\N{LATIN SMALL LETTER SHARP S}e"],
}


@pytest.mark.parametrize(("key", "path"), [(key, path) for key, paths in ONE_PATH.items() for path in paths])
def test_spellings_of_one_windows_path_have_one_key(key: str, path: str) -> None:
    assert windows_key(path) == key


@pytest.mark.parametrize("key", ONE_PATH)
def test_a_windows_key_is_a_spelling_of_its_path(key: str) -> None:
    assert windows_key(key) == key


def test_different_windows_paths_have_different_keys() -> None:
    assert len({windows_key(path) for paths in ONE_PATH.values() for path in paths}) == len(ONE_PATH)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("c:/VM//Data.vhdx/", r"c:\VM\Data.vhdx"),
        (r"C:\a\.\b\..\c. ", r"C:\a\c"),
        ("C:/", "C:\\"),
        (r"\\?\C:\a\\b" "\\", r"\\?\C:\a\b"),
        (r"\\?\C:\a\..\b/c.", r"\\?\C:\a\..\b/c."),
        (r"\??\C:\a", r"\\?\C:\a"),
        ("//?/C:/a/../b", r"\\?\C:\b"),
        (r"\\.\C:\a\.\b", r"\\.\C:\a\b"),
        (r"\\.\PHYSICALDRIVE2", r"\\.\PHYSICALDRIVE2"),
        (r"\\.\PhysicalDrive2" "\\", r"\\.\PhysicalDrive2"),
        ("\\\\?\\Volume{1}\\", "\\\\?\\Volume{1}\\"),
        ("//Server/Share/a/", r"\\Server\Share\a"),
        (r"\\Server\Share", "\\\\Server\\Share\\"),
        ("//./pipe/x", r"\\.\pipe\x"),
        # A directory whose name ends in a space: without its separator Windows would drop the space.
        ("C:\\a \\", "\\\\?\\C:\\a "),
    ],
)
def test_a_windows_path_is_sent_in_the_callers_spelling_cleaned(path: str, sent: str) -> None:
    assert host_path(path, "windows") == sent


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/srv/Data.img", "/srv/Data.img"),
        ("//srv/.//Data.img/", "/srv/Data.img"),
        ("/", "/"),
        ("///", "/"),
        ("/../a", "/a"),
        ("/a/../b", "/a/../b"),
        ("/a/..", "/a/.."),
        ("/a\\b", "/a\\b"),
        ("/a. /b ", "/a. /b "),
    ],
)
def test_a_posix_path_is_cleaned_and_is_its_own_key(path: str, sent: str) -> None:
    assert host_path(path, "posix") == posix_key(path) == sent


@pytest.mark.parametrize(
    ("path", "flavour", "problem"),
    [
        ("data.vhdx", "windows", r"host path: 'data\.vhdx' is relative; a path such as C:"),
        (r"..\data.vhdx", "windows", "relative"),
        (" ", "windows", "relative"),
        ("D:", "windows", "'D:' has a drive and no root"),
        ("D:x", "windows", "a drive and no root"),
        ("D:..", "windows", "a drive and no root"),
        (r"\x", "windows", "no drive"),
        ("/srv/data.img", "windows", "no drive"),
        ("\\", "windows", "no drive"),
        ("\\\\", "windows", "names no file"),
        (r"\\server", "windows", "names no file"),
        ("\\\\server\\", "windows", "names no file"),
        ("\\\\.\\", "windows", "names no file"),
        ("\\??\\", "windows", "names no file"),
        (r"\\?\UNC\server", "windows", "names no file"),
        (r"\\.\C:\..", "windows", "names no file"),
        ("data.img", "posix", r"host path: 'data\.img' is relative; a path such as /"),
        ("./data.img", "posix", "relative"),
        (r"C:\data.vhdx", "posix", "relative"),
    ],
)
def test_what_is_not_absolute_is_refused(path: str, flavour: Any, problem: str) -> None:
    for fold in (host_path, host_path_key):
        with pytest.raises(OptionsError, match=problem):
            fold(path, flavour)
    for fold_in_guest in (guest_path, guest_path_key):
        with pytest.raises(OptionsError, match=problem.replace("host path", "guest path")):
            fold_in_guest(path, "windows" if flavour == "windows" else "linux")


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"/a"


@pytest.mark.parametrize("path", [b"/a", BytesPath(), None, 7, PurePosixPath, ["/a"], "", "/a\0b"])
def test_what_is_no_path_is_refused_by_what_it_was_given_for(path: Any) -> None:
    for fold in (text_of, lambda p, what: host_path(p, "posix", what), pipe_key):
        with pytest.raises(OptionsError, match=r"^the scratch: "):
            fold(path, "the scratch")


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (PureWindowsPath("C:/a/b"), r"C:\a\b"),
        (PureWindowsPath(r"\\.\PHYSICALDRIVE2"), r"\\.\PHYSICALDRIVE2"),
        (PureWindowsPath(r"\\server\share"), "\\\\server\\share\\"),
        (PurePosixPath(r"C:\a\b"), r"C:\a\b"),
    ],
)
def test_pathlib_paths_are_taken(path: Any, sent: str) -> None:
    assert text_of(path) == str(path)
    assert host_path(path, "windows") == sent


# Guests.


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/run/x", "/run/x"),
        ("//run/x", "/run/x"),
        ("///run//x/./", "/run/x"),
        ("/run/y/../x", "/run/x"),
        ("/../../run/x", "/run/x"),
        ("/Run/X", "/Run/X"),
        ("/", "/"),
        ("//", "/"),
    ],
)
def test_a_path_in_a_linux_guest_is_cleaned_and_is_its_own_key(path: str, sent: str) -> None:
    assert guest_path(path, "linux") == guest_path_key(path, "linux") == sent


@pytest.mark.parametrize("path", [r"C:\data", "c:\\DATA\\", "C:/data", r"C:\x\..\Data", r"\\?\C:\data"])
def test_spellings_of_one_path_in_a_windows_guest_have_one_key(path: str) -> None:
    assert guest_path_key(path, "windows") == r"C:\DATA"


def test_a_path_in_a_windows_guest_is_sent_with_backslashes() -> None:
    assert guest_path("c:/Data//x/", "windows") == r"c:\Data\x"


# Other names.


@pytest.mark.parametrize(
    "guid", [GUID, GUID.upper(), f"{{{GUID}}}", f"{{{GUID.upper()}}}", f"  {GUID}\n", f" {{ {GUID} }} "]
)
def test_a_guid_is_one_in_any_case_with_and_without_braces_and_space(guid: str) -> None:
    assert guid_key(guid) == GUID


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Nat-1", "nat-1"),
        ("{Nat-1}", "nat-1"),
        ("{nat", "{nat"),
        ("{a}-{b}", "{a}-{b}"),
        ("{{a}}", "{{a}}"),
        ("", ""),
        ("\N{KELVIN SIGN}", "\N{KELVIN SIGN}"),
        ("Ä", "Ä"),
    ],
)
def test_an_id_that_is_no_guid_is_folded_as_far_as_is_sure(text: str, key: str) -> None:
    assert guid_key(text) == key


@given(st.text())
def test_any_text_has_a_guid_key(text: str) -> None:
    assert guid_key(guid_key(text)) == guid_key(text)


@pytest.mark.parametrize(
    ("pipe", "sent"),
    [
        (r"\\.\pipe\Docker", r"\\.\pipe\Docker"),
        ("//./PIPE/Docker", r"\\.\pipe\Docker"),
        (r"\\?\pipe\Docker", r"\\.\pipe\Docker"),
        (r"\??\Pipe\Docker", r"\\.\pipe\Docker"),
        (r"\\.\pipe\a\b", r"\\.\pipe\a\b"),
        (r"\\.\pipe\a/b", r"\\.\pipe\a\b"),
        (r"\\?\pipe\a/b", r"\\?\pipe\a/b"),
    ],
)
def test_a_pipe_is_sent_as_hcs_spells_it_and_compared_without_case(pipe: str, sent: str) -> None:
    assert pipe_path(pipe) == sent
    assert pipe_key(pipe) == pipe_key(sent) == pipe_key(pipe_key(pipe)) == sent.upper()


@pytest.mark.parametrize(
    "path",
    [r"C:\a", "a", r"\\.\pipe", "\\\\.\\pipe\\", r"\\.\pipex\a", r"\\server\pipe\a", r"\\.\pipe\..\C:\a"],
)
def test_what_is_not_a_pipe_of_the_host_is_refused(path: str) -> None:
    with pytest.raises(OptionsError, match="not a named pipe"):
        pipe_key(path)


def test_pci_instance_paths_are_compared_without_case() -> None:
    path = r"PCI\VEN_10DE&DEV_1EB8\4&9F2A&0&0008"
    assert pci_key(path.lower()) == pci_key(path) == path


# The case of Windows.

#: Letters that Windows compares as equal, and beside them those which look or fold alike elsewhere.
LETTERS = [
    "aA", "iI", "kK", "sS", "äÄ", "ÿŸ", "σΣ", "жЖ", "μΜ", "ạẠ", "ǆǄ",
    "\N{LATIN SMALL LETTER SHARP S}", "\N{LATIN CAPITAL LETTER SHARP S}", "\N{LATIN SMALL LIGATURE FI}",
    "\N{LATIN SMALL LETTER DOTLESS I}", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}",
    "\N{LATIN SMALL LETTER LONG S}", "\N{KELVIN SIGN}", "\N{ANGSTROM SIGN}", "åÅ", "\N{MICRO SIGN}",
    "\N{GREEK SMALL LETTER FINAL SIGMA}", "\N{LATIN CAPITAL LETTER D WITH SMALL LETTER Z WITH CARON}",
    "\N{GEORGIAN LETTER AN}", "\N{GEORGIAN MTAVRULI CAPITAL LETTER AN}",
    "\N{DESERET SMALL LETTER LONG I}", "\N{DESERET CAPITAL LETTER LONG I}", "\ud800", "7", "-", "日",
]  # fmt: skip


def test_windows_knows_pairs_of_letters_and_no_other_likeness() -> None:
    for letters in LETTERS:
        assert {windows_upper(letter) for letter in letters} == {letters[-1]}
    assert len({letters[-1] for letters in LETTERS}) == len(LETTERS)


def test_upper_case_is_one_character_for_one_and_final() -> None:
    everything = "".join(map(chr, range(0x20000)))
    upper = windows_upper(everything)
    assert len(upper) == len(everything)
    assert windows_upper(upper) == upper
    changed = [letter for letter, capital in zip(everything, upper, strict=True) if letter != capital]
    assert len({windows_upper(letter) for letter in changed}) == len(changed)


# Properties.

PREFIXES = [
    "C:",
    "c:\\",
    "\\\\.\\",
    "\\\\?\\",
    "\\??\\",
    "//?/",
    "\\\\s\\h\\",
    "\\\\?\\UNC\\s\\h",
    "\\\\.\\pipe\\",
    "/",
]
ANY_PATH = st.builds(
    str.__add__,
    st.sampled_from(["", *PREFIXES]),
    st.text(st.sampled_from("aB:. /\\?{}\N{LATIN SMALL LETTER SHARP S}"), max_size=12)
    | st.lists(st.sampled_from(["a", ".", "..", "...", " ", "\\", "/", "C:", "UNC", "Volume{1}"])).map(
        "".join
    )
    | st.text(),
)

FOLDS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "Windows host": (lambda path: host_path(path, "windows"), windows_key),
    "POSIX host": (lambda path: host_path(path, "posix"), posix_key),
    "Linux guest": (lambda path: guest_path(path, "linux"), lambda path: guest_path_key(path, "linux")),
    "Windows guest": (lambda path: guest_path(path, "windows"), lambda path: guest_path_key(path, "windows")),
    "pipe": (pipe_path, pipe_key),
}


@pytest.mark.parametrize("where", FOLDS)
@given(path=ANY_PATH)
def test_folding_anything_is_final_and_what_is_sent_has_the_same_key(where: str, path: str) -> None:
    clean, key = FOLDS[where]
    try:
        sent = clean(path)
    except OptionsError:
        with pytest.raises(OptionsError):
            key(path)
        return
    assert clean(sent) == sent
    assert key(sent) == key(path) == key(key(path))


def slow_key(path: str) -> str:
    """Rewrite a path with a drive one step at a time, by Windows' documentation of its path formats."""
    drive, rest = path[:2], re.sub(r"[\\/]+", r"\\", path[2:].rstrip(" "))
    steps = [
        (r"\\\.(?=\\|\Z)", ""),
        (r"^\\\.\.(?=\\|\Z)", ""),
        (r"\\(?!\.\.\\)[^\\]+\\\.\.(?=\\|\Z)", ""),
        (r"(?<=[^.\\])\.(?=\\)", ""),
    ]
    before = None
    while before != rest:
        before = rest
        for pattern, new in steps:
            rest = re.sub(pattern, new, rest, count=1)
    if path[-1] not in "/\\":
        rest = rest.rstrip(" .")
    rest = rest.rstrip("\\") or "\\"
    return ("\\\\?\\" if rest[-1] in ". " else "") + f"{drive}{rest}".upper()


@given(
    st.lists(st.sampled_from(["a", "B", ".", "..", "...", " ", "\\", "/"]), max_size=12).map("".join),
    st.sampled_from("cD"),
)
@example(r"a \.", "C")
@example("a..\\", "C")
@example(r"a.\..\..\b .\c", "C")
def test_win32_paths_are_folded_as_windows_documents_it(rest: str, drive: str) -> None:
    path = f"{drive}:\\{rest}"
    assert windows_key(path) == slow_key(path)


#: A name is its letters; no name here ends in a dot or a space.
NAMES = st.lists(
    st.sampled_from([letters for letters in LETTERS if letters != "\ud800"]), min_size=1, max_size=4
)
PATHS = st.lists(NAMES, max_size=4)
SEPARATORS = st.text("/\\", min_size=1, max_size=3)


def key_of(root: str, names: list[list[str]]) -> str:
    return root + "\\".join("".join(letters[-1] for letters in name) for name in names)


@st.composite
def spellings(draw: st.DrawFn, names: list[list[str]], separators: st.SearchStrategy[str]) -> str:
    """Spell the part of a Windows path after its root: any case, and the separators that are given."""
    words = ["".join(draw(st.sampled_from(letters)) for letters in name) for name in names]
    return "".join(word + draw(separators) for word in words[:-1]) + "".join(words[-1:])


@st.composite
def win32_spellings(draw: st.DrawFn, names: list[list[str]]) -> str:
    detours = st.sampled_from(["", ".", "x/..", r".\x.y\z\..\.."])
    between = st.tuples(SEPARATORS, detours, SEPARATORS).map("".join)
    path = draw(spellings(names, between))
    end = draw(st.sampled_from(["/", "\\", ".", " ", ". .", r"\.", r"\x\.."]) if names else st.just(""))
    root = draw(st.sampled_from(["c:", "C:", r"\\.\C:", r"\\?\c:".replace("\\", "/")]))
    return f"{root}{draw(between)}{path}{end}"


@st.composite
def verbatim_spellings(draw: st.DrawFn, names: list[list[str]]) -> str:
    separators = st.sampled_from(["\\", "\\\\"])
    root = draw(st.sampled_from([r"\\?\c:", r"\??\C:"])) + draw(separators)
    return root + draw(spellings(names, separators)) + draw(st.sampled_from(["", "\\"]))


@given(st.data(), PATHS)
def test_every_respelling_of_a_windows_path_has_its_key(data: st.DataObject, names: list[list[str]]) -> None:
    path = data.draw(win32_spellings(names) | verbatim_spellings(names))
    assert windows_key(path) == key_of("C:\\", names)


@given(st.data(), PATHS, PATHS)
def test_windows_paths_of_different_names_never_meet(
    data: st.DataObject, one: list[list[str]], other: list[list[str]]
) -> None:
    assume(key_of("", one) != key_of("", other))
    spelled = [data.draw(win32_spellings(names) | verbatim_spellings(names)) for names in (one, other)]
    assert windows_key(spelled[0]) != windows_key(spelled[1])


@given(st.lists(st.text("aB. /", min_size=1, max_size=3)), st.lists(st.text("aB. /", min_size=1, max_size=3)))
def test_verbatim_paths_are_one_only_if_their_names_are(one: list[str], other: list[str]) -> None:
    keys = [windows_key("\\\\?\\C:\\" + "\\".join(names)) for names in (one, other)]
    assert (keys[0] == keys[1]) == ([n.upper() for n in one] == [n.upper() for n in other])


@given(
    st.data(),
    st.lists(st.text("aAß. \\:", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))),
)
def test_every_respelling_of_a_posix_path_has_its_key(data: st.DataObject, names: list[str]) -> None:
    noise = st.sampled_from(["/", "//", "/./", "///.//"])
    path = "".join(data.draw(noise) + name for name in names) + data.draw(noise)
    assert posix_key(path) == guest_path_key(path, "linux") == "/" + "/".join(names)
