"""What is awaited in the API, and its annotations without that. The stub is written by the same."""

from __future__ import annotations

import ast
import inspect
import re
from functools import lru_cache
from types import FunctionType
from typing import Any, Final

#: What returns something that is awaited, entered, or iterated over, says so by one of these.
_AWAITED: Final = re.compile(
    r"\b(Opening|Awaitable|Coroutine|AsyncIterator|AsyncIterable|AsyncGenerator|\w*AsyncContextManager)\b"
)
#: For a task of the caller's alone.
_LEFT_OUT: Final = ("serve",)
_DUNDERS: Final = ("__aenter__", "__anext__")
#: Generics that stand for what they hold once that was awaited, by which of their parameters.
_HOLDS: Final = {"Opening": 0, "Awaitable": 0, "Coroutine": 2}
_INSTEAD: Final = {
    "AsyncIterator": "Iterator",
    "AsyncIterable": "Iterable",
    "AbstractAsyncContextManager": "AbstractContextManager",
}


def is_context(member: object) -> bool:
    """Return whether a function returns a context manager to be entered, which is not awaited."""
    function = _function(member)
    returned = str(getattr(function, "__annotations__", {}).get("return", ""))
    if inspect.isasyncgenfunction(function):
        # Decorated by asynccontextmanager, as all of the API are.
        return True
    return "AsyncContextManager" in returned


def is_awaited(member: object) -> bool:
    """Return whether what a function returns is awaited, entered, or iterated over."""
    function = _function(member)
    if not isinstance(function, FunctionType):
        return False
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return True
    return bool(_AWAITED.search(str(function.__annotations__.get("return", ""))))


def faced_names(cls: type) -> list[str]:
    """Return the names of a class that its faces have too."""
    return [name for name in dir(cls) if not name.startswith("_") and name not in _LEFT_OUT]


@lru_cache(None)
def has_awaited(cls: type) -> bool:
    """Return whether a class has a public method of which that holds."""
    return any(
        is_awaited(inspect.getattr_static(cls, name))
        for name in dir(cls)
        if not name.startswith("_") or name in _DUNDERS
    )


def _function(member: Any) -> Any:
    return inspect.unwrap(getattr(member, "__func__", member))


def signature_of(function: Any) -> inspect.Signature:
    """Return the signature of a function of which the result was awaited."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=without_await(parameter.annotation))
        for parameter in signature.parameters.values()
    ]
    returned = without_await(signature.return_annotation)
    if inspect.isasyncgenfunction(_function(function)):
        returned = returned.replace("Iterator", "AbstractContextManager", 1)
    return signature.replace(parameters=parameters, return_annotation=returned)


def without_await(annotation: Any) -> Any:
    """Return an annotation, as text, of what was awaited."""
    if not isinstance(annotation, str) or not _AWAITED.search(annotation):
        return annotation
    return ast.unparse(_Awaiting().visit(ast.parse(annotation, mode="eval")))


class _Awaiting(ast.NodeTransformer):
    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """Replace a generic that holds what is awaited by that."""
        held = node.slice
        if isinstance(node.value, ast.Name) and node.value.id in _HOLDS:
            parameters = held.elts if isinstance(held, ast.Tuple) else [held]
            return self.visit(parameters[_HOLDS[node.value.id]])  # type: ignore[no-any-return]
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Replace what is async by name."""
        return ast.Name(_INSTEAD.get(node.id, node.id))
