"""Sphinx configuration. Builds without a network: third parties are not linked, only named."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from tables import write_tables

import uvm

write_tables(Path(__file__).parent / "_build" / "tables")

project = "uvm"
author = "The uvm maintainers"
copyright = f"2026, {author}"
release = version = uvm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"uvm {release}"
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
# The options classes have many fields: a line for each.
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

# A reference in the text has to resolve. What signatures mention need not have a page: names of the standard
# library and of dependencies, the schema models, the insides of the fake and of the connection, type
# variables; nor need constants.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!uvm\b)\w+(\.\w+)+"),
    (r"py:mod", r"(?!uvm\b)\w+"),
    (r"py:(mod|class)", r"uvm\.(schema|boot|arrival|backends\.fake|buses\.(context|link))\..*"),
    (r"py:class", r"uvm\.gcs\.(link|stdio)\.\w+"),
    (r"py:class", r"\w+"),
    (r"py:class", r"uvm\..*\._\w+"),
    (r"py:data", r"[A-Z_]+"),
    (r"py:(class|obj)", r"uvm\..*\.[A-Z]"),
]
