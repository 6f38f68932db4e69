"""Which modules a program is made of: its own, found by reading their imports, and what else they import.

Nothing is imported. Imports in functions count, those for type checkers do not; what the program imports by
name at run time has to be named.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen


@frozen
class Program:
    """What a program is made of.

    :ivar files: its own modules' files, by the names of the modules.
    :ivar imported: the other modules that it imports.
    """

    files: dict[str, str]
    imported: list[str]


def program(names: Iterable[str], roots: Sequence[str]) -> Program:
    """Find the modules of a program, and the packages around them.

    :param names: modules to begin with; those of a package that are imported by name only have to be here.
    :param roots: the directories that hold its packages.
    :raises FileNotFoundError: one of `names` is in none of the directories.
    """
    files: dict[str, str] = {}
    others: set[str] = set()
    todo = [package for name in names for package in _packages(name)]
    for name in todo:
        if not _file(name, roots):
            raise FileNotFoundError(f"there is no module {name} in {', '.join(roots)}")
    while todo:
        name = todo.pop()
        if name in files:
            continue
        if path := _file(name, roots):
            files[name] = path
            package = name if os.path.basename(path) == "__init__.py" else name.rpartition(".")[0]
            todo += [each for found in imports(path, package) for each in _packages(found)]
        elif not _file(name.partition(".")[0], roots):
            # What is no module of a package of ours is a name in it.
            others.add(name)
    return Program(dict(sorted(files.items())), sorted(others))


def imports(path: str, package: str) -> Iterator[str]:
    """Yield what a file imports, and each name that it imports from a module, as if that were a module too.

    :param package: the package that relative imports start from.
    """
    with open(path, "rb") as file:
        tree = ast.parse(file.read(), path)
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names if alias.name != "*")


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for each in child.orelse:
                yield each
                yield from _executed(each)
        else:
            yield child
            yield from _executed(child)


def _packages(name: str) -> list[str]:
    """Return a module and the packages around it, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _file(name: str, roots: Sequence[str]) -> str | None:
    # A root may be site-packages, with an older copy of a module of Python's.
    if name.partition(".")[0] in sys.stdlib_module_names:
        return None
    relative = name.replace(".", "/")
    candidates = (f"{root}/{relative}{end}" for root in roots for end in ("/__init__.py", ".py"))
    return next(filter(os.path.isfile, candidates), None)
