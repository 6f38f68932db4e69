"""The stub ``uvm/sync.pyi``, derived from the API to be awaited. ``python -m tests.sync.stub`` writes it."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import FunctionType
from typing import Any, get_overloads

import uvm
from uvm._sync.annotations import faced_names, signature_of, without_await
from uvm._sync.names import faced
from uvm._vm.keywords import CreationSettings

PATH = Path(uvm.__file__).with_name("sync.pyi")

_HEAD = '''\
"""The types of :mod:`uvm.sync`. Written by ``python -m tests.sync.stub``, to which a test holds it."""

'''
#: The streams are files, and the loop is its own.
_OWN = """
class ProcessOutput(io.BufferedReader): ...

class ProcessInput(io.BufferedIOBase):
    @property
    def name(self) -> str: ...
    def write(self, data: ReadableBuffer, /) -> int: ...

class timeout(AbstractContextManager[None, None]):
    def __init__(self, seconds: float) -> None: ...
    def __exit__(self, *exc: object) -> None: ...

class event_loop(AbstractContextManager[None, None]):
    def __init__(self, backend: Literal["asyncio", "trio"] = "asyncio") -> None: ...
    def __exit__(self, *exc: object) -> None: ...
"""
_OWN_IMPORTS = {
    ("io", ""),
    ("_typeshed", "ReadableBuffer"),
    ("contextlib", "AbstractContextManager"),
    ("typing", "Literal"),
}
#: A file in place of a stream that ends with an exception.
_ALIASES = {"OutputHandler": "Callable[[ProcessOutput], object]"}


class Text(str):
    """What is written as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@lru_cache(None)
def names_in(module: str) -> dict[str, tuple[str, str]]:
    """Return where each name of a module comes from: the module, and the name there if it is no module."""
    source = import_module(module).__file__
    assert source is not None
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse(Path(source).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {each.asname or each.name: (node.module, each.name) for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0]: (each.name, "") for each in node.names}
    return found


@lru_cache(None)
def aliases_in(module: str) -> dict[str, str]:
    """Return the type aliases of a module, by name."""
    source = import_module(module).__file__
    assert source is not None
    return {
        ast.unparse(node.target): ast.unparse(node.value)
        for node in ast.walk(ast.parse(Path(source).read_text("utf-8")))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias" and node.value
    }


class Stub:
    """The stub as it grows."""

    def __init__(self) -> None:
        #: By module and name there; a module of its own has no name.
        self.imports: set[tuple[str, str]] = {*_OWN_IMPORTS}

    def text(self) -> str:
        body = "".join(self.rendered())
        lines = [f"import {module}\n" for module, name in sorted(self.imports) if not name]
        for module in sorted({module for module, name in self.imports if name}):
            names = sorted(name for home, name in self.imports if name and home == module)
            lines.append(f"from {module} import {', '.join(names)}\n")
        return _HEAD + "".join(lines) + _OWN + body

    def rendered(self) -> Iterator[str]:
        yield self.settings()
        for name, value in sorted(faced().items()):
            if isinstance(value, type):
                yield f"\nclass {name}{self.bases(value)}:\n"
                yield "".join(f"    {line}\n" for line in self.members(value)) or "    ...\n"
            else:
                yield from ("\n", *(f"{line}\n" for line in self.function(name, value)))

    def settings(self) -> str:
        fields = CreationSettings.__annotations__.items()
        lines = [
            f"    {name}: {self.type(kind.__forward_arg__, CreationSettings)}\n" for name, kind in fields
        ]
        return "\nclass _CreationSettings(TypedDict, total=False):\n" + "".join(lines)

    def bases(self, cls: type) -> str:
        bases = [each.__name__ for each in cls.__mro__[1:] if self.is_face(each)]
        bases += ["Protocol"] if getattr(cls, "_is_protocol", False) else []
        self.imports |= {("typing", "Protocol"), ("typing", "TypedDict")}
        return f"({', '.join(bases)})" if bases else ""

    def is_face(self, value: object) -> bool:
        return isinstance(value, type) and faced().get(value.__name__) is value

    # Members.

    def members(self, cls: type) -> Iterator[str]:
        known = {name for base in cls.__mro__[1:] if self.is_face(base) for name in dir(base)}
        for name, (annotation, where) in sorted(attributes_of(cls).items()):
            if name not in dir(cls) or not callable(getattr(cls, name, None)):
                yield "@property"
                yield f"def {name}(self) -> {self.type(annotation, where)}: ..."
        if cls is uvm.Pool:
            yield from self.function("__init__", cls.__init__)
        for name in faced_names(cls):
            if name not in attributes_of(cls) and name not in known:
                called = "close" if name == "aclose" and not hasattr(cls, "close") else name
                yield from self.member(called, inspect.getattr_static(cls, name))
        if hasattr(cls, "__aenter__") and not known:
            if cls.__aenter__.__module__.startswith("anyio."):
                # Its versions say the same in different words.
                yield "def __enter__(self) -> Self: ..."
            else:
                yield from self.function("__enter__", cls.__aenter__)
            yield from self.function("__exit__", cls.__aexit__)  # type: ignore[attr-defined]

    def member(self, name: str, member: Any) -> Iterator[str]:
        if isinstance(member, property | cached_property):
            getter = member.func if isinstance(member, cached_property) else member.fget
            yield "@property"
            yield f"def {name}(self) -> {self.type(getter.__annotations__['return'], getter)}: ..."
        elif isinstance(member, classmethod):
            yield "@classmethod"
            yield from self.function(name, member.__func__)
        else:
            assert isinstance(member, FunctionType), f"{name} is {member!r}; say in the class what it is"
            yield from self.function(name, member)

    def function(self, name: str, function: Any) -> Iterator[str]:
        overloads = get_overloads(inspect.unwrap(function))
        for each in overloads or [function]:
            if overloads:
                self.imports.add(("typing", "overload"))
                yield "@overload"
            signature = signature_of(each)
            where = inspect.unwrap(each)
            parameters = [self.parameter(each, where) for each in signature.parameters.values()]
            returned = Text(self.type(signature.return_annotation, where))
            yield f"def {name}{signature.replace(parameters=parameters, return_annotation=returned)}: ..."

    def parameter(self, parameter: inspect.Parameter, where: Any) -> inspect.Parameter:
        empty = inspect.Parameter.empty
        if parameter.default is not empty:
            parameter = parameter.replace(default=Text("..."))
        if parameter.annotation is empty:
            return parameter
        kind = self.type(parameter.annotation, where)
        if kind.split(" | ")[0] == "Backend":
            # One without a face is as good.
            self.imports.add(("uvm.backend", ""))
            kind = f"uvm.backend.Backend | {kind}"
        return parameter.replace(annotation=Text(kind))

    # Types.

    def type(self, annotation: str, where: Any) -> str:
        """Return an annotation as it is in the stub, and import its names.

        :param where: what it is written in: a function or a class.
        """
        return ast.unparse(self.resolve(ast.parse(without_await(annotation), mode="eval"), where.__module__))

    def resolve(self, tree: ast.AST, module: str) -> ast.AST:
        stub = self

        class Resolving(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.AST:
                return stub.name(node, module)

            def visit_Constant(self, node: ast.Constant) -> ast.AST:
                return node

        return Resolving().visit(tree)  # type: ignore[no-any-return]

    def name(self, node: ast.Name, module: str) -> ast.AST:
        name = node.id
        home, there = names_in(module).get(name, (module, name))
        if name == "CreationSettings":
            return ast.Name("_CreationSettings")
        if not there:
            self.imports.add((home, ""))
            return node
        if name in _ALIASES or (home.startswith("uvm.") and there in aliases_in(home)):
            alias = _ALIASES.get(name) or aliases_in(home)[there]
            if name in _ALIASES or "Awaitable" in alias:
                self.imports.add(("collections.abc", "Callable"))
                return self.resolve(ast.parse(without_await(alias), mode="eval").body, home)
        value = getattr(import_module(home), there, None)
        if self.is_face(value) or name in ("ProcessOutput", "ProcessInput"):
            return node
        if name in ("Iterator", "AbstractContextManager", "Iterable"):
            home = "contextlib" if name == "AbstractContextManager" else "collections.abc"
        elif home == "typing_extensions":
            home = "typing"
        elif value is None and home == module:
            assert name in dir(import_module("builtins")), f"{name} of {module} is not known"
            return node
        if there not in {known for _, known in self.imports}:
            self.imports.add((home, there))
        return node


@lru_cache(None)
def attributes_of(cls: type) -> dict[str, tuple[str, Any]]:
    """Return the public attributes of the objects of a class: the annotation, and the class it is in."""
    found: dict[str, tuple[str, Any]] = {}
    for each in reversed(cls.__mro__):
        own = vars(each).get("__annotations__", {})
        if not each.__module__.startswith("uvm."):
            continue
        found |= {name: (kind, each) for name, kind in own.items() if not name.startswith("_")}
        if (
            isinstance(init := vars(each).get("__init__"), FunctionType)
            and init.__module__ == each.__module__
        ):
            found |= {name: (kind, each) for name, kind in set_in(init)}
    return {name: (kind, where) for name, (kind, where) in found.items() if "ClassVar" not in kind}


def set_in(init: FunctionType) -> Iterator[tuple[str, str]]:
    """Yield the public attributes that a constructor sets, with their annotations."""
    if init.__code__.co_filename.startswith("<"):
        # Made by attrs, of annotations.
        return
    for node in ast.walk(ast.parse(dedent(inspect.getsource(init)))):
        if isinstance(node, ast.AnnAssign | ast.Assign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                name = ast.unparse(target)
                if isinstance(target, ast.Attribute) and name.startswith("self.") and "._" not in name:
                    annotation = (
                        ast.unparse(node.annotation)
                        if isinstance(node, ast.AnnAssign)
                        else init.__annotations__[ast.unparse(node.value)]  # A parameter.
                    )
                    yield target.attr, annotation


def main() -> int:
    PATH.write_text(Stub().text(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
