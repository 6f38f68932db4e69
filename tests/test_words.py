"""The words of the library: docstrings, comments, messages and pages use the terms of the field."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: What is held to the rules.
HELD = ("README.md", "CHANGELOG.md", "docs", "uvm")

#: What is not used, and the terms that are used instead.
INSTEAD = {
    r"nobody knows": "unknown",
    r"nobody|somebody|anybody|anyone|someone|whoever": "the caller, the task, the user, none",
    r"(?:tell|tells|told|telling)": "report, return, distinguish",
    r"(?:take|takes|took|taken|taking) back": "roll back, revoke, undo",
    r"(?:give|gives|gave|given|giving) (?:back|up)": "release, abandon",
    r"(?:let|lets|letting) go": "release, detach, eject",
    r"comes? out|last word": "is raised, is returned, decides",
    r"(?:life|lives)": "lifetime, or what happens in it",
    r"things?": "the name of what is meant",
    r"(?<!under )ways?": "the name of what is meant: connection, means, direction",
    r"is over": "who or what ends: the VM exits, the call returns",
}
RULE = re.compile("|".join(rf"\b(?:{each})\b" for each in INSTEAD), re.IGNORECASE)

#: How the docstring of a function does not begin: "Return" is meant, or the subject is left out.
OPENING = re.compile(r"(?:Gives?|Tells?|Says?|Take note|It|Its)\b")


def held(name: str) -> list[Path]:
    """Return the files of a part that is held to the rules."""
    path = ROOT / name
    within = [path] if path.is_file() else [each for each in path.rglob("*") if "_build" not in each.parts]
    return sorted(each for each in within if each.suffix in (".py", ".md"))


@lru_cache(maxsize=1)
def nodes(source: str) -> list[ast.AST]:
    """Return all nodes of a module."""
    return list(ast.walk(ast.parse(source)))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of comments and literals of a module, or of a page without its code."""
    source = path.read_text("utf-8")
    if path.suffix == ".md":
        yield from enumerate(re.sub(r"`[^`\n]+`", "", source).splitlines(), 1)
        return
    # Most files have no comment to look at; finding which is one takes longer than all the rest.
    if any("#" in line and RULE.search(line) for line in source.splitlines()):
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    for node in nodes(source):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def openings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the docstring of each function of a module."""
    for node in nodes(path.read_text("utf-8")) if path.suffix == ".py" else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (said := ast.get_docstring(node)):
            yield node.lineno, said


def unlike(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line of each word that is not used, and of each opening of a docstring, and the word."""
    yield from ((line, match[0]) for line, text in texts(path) for match in RULE.finditer(text))
    yield from ((line, said.split()[0]) for line, said in openings(path) if OPENING.match(said))


@pytest.mark.parametrize("name", HELD)
def test_the_terms_of_the_field_are_used(name: str) -> None:
    paths = held(name)
    assert paths
    found = [f"{path}:{line}: {said}" for path in paths for line, said in unlike(path)]
    assert not found, f"there is another term for it: {INSTEAD}"


@pytest.mark.parametrize(
    "text", ["Nobody knows.", "what it takes back", "It was told.", "gives up", "any way", "a THING"]
)
def test_a_word_that_is_not_used_is_found(text: str) -> None:
    assert RULE.search(text)


@pytest.mark.parametrize(
    "text", ["always", "anything", "gateway", "given", "overtaken", "lifetime", "untold"]
)
def test_a_word_within_another_is_none(text: str) -> None:
    assert not RULE.search(text)
