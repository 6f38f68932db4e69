"""Sphinx configuration. Builds without a network: third parties are not linked, only named."""

from __future__ import annotations

import functools
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any, TypeVar

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parent))
from pictures import write_pictures
from tables import write_tables

import uvm

logger = logging.getLogger(__name__)

write_tables(Path(__file__).parent / "_build" / "tables")
write_pictures(Path(__file__).parent / "_build" / "pictures")

project = "uvm"
author = "The uvm maintainers"
copyright = f"2026, {author}"
release = version = uvm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "figures"]

html_theme = "furo"
html_title = f"uvm {release}"
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
# The options classes have many fields: a line for each.
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

# A reference has to resolve. What third parties and the standard library define is named only, and so are
# constants.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!uvm\b)\w+(\.\w+)*"),
    (r"py:data", r"[A-Z_]+"),
]


def setup(app: Sphinx) -> None:
    """Join the public names to what they name; hide what is private."""
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-signature", hide_private)
    app.connect("autodoc-process-signature", tidy_fields)
    app.connect("env-check-consistency", check_documented)


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element) -> Element | None:
    """Resolve where it is defined to a name on a page, and what a module without a page defines to text."""
    target = str(node.get("reftarget"))
    found = find(target) if node.get("refdomain") == "py" else None
    if found is None or isinstance(found, TypeVar):
        return None if found is None else contnode
    domain = env.domains.python_domain
    for name in domain.objects:
        if name != target and find(name) is found and hasattr(found, "__qualname__"):
            where = node["refdoc"], app.builder, node["reftype"]
            return domain.resolve_xref(env, *where, name, node, contnode)
    return None if target.rpartition(".")[0] in domain.modules else contnode


@functools.cache
def find(name: str) -> Any:
    """Return the object of ours that has this name, if there is one."""
    try:
        return pkgutil.resolve_name(name) if name.startswith("uvm.") else None
    except (AttributeError, ImportError):
        return None


def hide_private(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Hide a constructor of the engine's if a parameter is not described: only the library calls it."""
    if what != "class" or not signature or "._" not in obj.__module__:
        return None
    described = re.findall(r":(?:ivar|param) (\w+):", obj.__doc__ or "")
    return None if set(described).issuperset(inspect.signature(obj).parameters) else ("", None)


def tidy_fields(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Show the type alone where a model marks a field as a secret, and a default that is made as ``...``."""
    if not signature or not ("msgspec.Meta" in signature or "<factory>" in signature):
        return None
    marked = r"~?typing\.Annotated\[(.+?), msgspec\.Meta\(extra=\{'secret': True\}\)\]"
    return re.sub(marked, r"\1", signature).replace("<factory>", "..."), returns


def check_documented(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each public name that no page documents."""
    documented = {id(find(name)) for name in env.domains.python_domain.objects}
    for name in uvm.__all__:
        if id(find(f"uvm.{name}")) not in documented:
            logger.warning("uvm.%s is public, and on no page", name)
