"""The manual of the command has each of its subcommands."""

from __future__ import annotations

import argparse
import re

from tests.cli.support import ROOT
from uvm.cli.commandline import make_parser

PAGE = (ROOT / "docs" / "commands.md").read_text("utf-8")


def subcommands() -> dict[str, argparse.ArgumentParser]:
    [action] = [each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(action.choices)


def test_each_subcommand_has_a_row_in_the_manual_and_help_of_its_own() -> None:
    assert set(re.findall(r"^\| `uvm (\w+)", PAGE, re.MULTILINE)) == {*subcommands()}
    assert [name for name, parser in subcommands().items() if not parser.description] == []


def test_the_commands_with_json_are_those_that_the_manual_lists() -> None:
    [listed] = re.findall(r"^(.*) have `--json`", PAGE, re.MULTILINE)
    have = {name for name, parser in subcommands().items() if "--json" in parser.format_help()}
    assert set(re.findall(r"`(\w+)`", listed)) == have
