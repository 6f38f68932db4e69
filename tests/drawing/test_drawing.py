"""Drawings as plain text, by rich, and as HTML."""

from __future__ import annotations

import io
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from uvm._drawing.blocks import Line, Rule, Span, Style, cells, line, table
from uvm._drawing.drawing import Drawing

STYLES: tuple[Style, ...] = ("", "bold", "dim", "red", "green", "yellow", "blue", "magenta", "cyan")
#: What rich paints with.
PAINT = re.compile(r"\x1b\[[\d;]*m")
DRAWING = Drawing(
    (
        Rule(Span("title", "bold")),
        line("one ", Span("two", "red"), indent=2),
        Line(),
        table(("name", "size"), [("a long name", "1"), ("b", Span("20", "green"))], indent=2, right=(1,)),
    )
)


def by_rich(drawing: Drawing, width: int = 40, colours: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, width=width, no_color=not colours).print(drawing)
    return stream.getvalue()


def test_plain_text_is_as_wide_as_what_is_in_it() -> None:
    first, *lines = str(DRAWING).splitlines()
    assert first == "── title ".ljust(100, "─")
    assert lines == ["  one two", "", "  name         size", "  a long name     1", "  b              20"]


def test_rich_draws_the_same_in_colours_and_to_the_width() -> None:
    drawn = by_rich(DRAWING, colours=True)
    assert "\x1b[31mtwo\x1b[0m" in drawn
    first, *lines = PAINT.sub("", drawn).splitlines()
    assert first == "── title ".ljust(40, "─")
    assert [each.rstrip() for each in lines] == str(DRAWING).splitlines()[1:]


@pytest.mark.parametrize("width", range(16, 80, 4))
def test_rich_cuts_nothing_where_columns_are_wide_at_least(width: int) -> None:
    row = ("grant", "access", "MappedVirtualDisk 0:1", "at /run/gcs/c/metrics/rootfs, 3 layers")
    drawn = PAINT.sub("", by_rich(Drawing((table((), [row], indent=2, least=(5, 9, 26)),)), width=width))
    assert Counter("".join(row).replace(" ", "")) == Counter("".join(drawn.split()))
    assert max(map(len, drawn.splitlines())) <= width


def test_rich_wraps_what_does_not_fit_and_cuts_nothing() -> None:
    drawn = by_rich(Drawing((table((), [("x" * 50, "y")]),)), width=20)
    assert [drawn.count("x"), drawn.count("y")] == [50, 1]
    assert max(map(len, PAINT.sub("", drawn).splitlines())) == 20


def test_html_needs_no_style_sheet_and_keeps_columns_apart() -> None:
    html = DRAWING._repr_html_()
    assert re.search(r'<span style="color:#\w+">two</span>', html)
    assert re.search(r"<td[^>]*>a long name</td><td[^>]*text-align:right[^>]*>1</td>", html)


def test_notebooks_set_nothing_of_it_as_mathematics() -> None:
    html = Drawing((table((), [("$x$",)]), line("$y$"), Rule(Span("$z$"))))._repr_html_()
    # One element around it all has the classes that MathJax 2 and 3 leave out.
    first, _, _ = html.partition(">")
    assert {"tex2jax_ignore", "mathjax_ignore"} <= {*re.findall(r"[\w-]+", first)}


def test_an_empty_line_of_html_is_not_dropped_at_the_beginning() -> None:
    assert re.search("<pre[^>]*>\n\n</pre>", Drawing((Line(),))._repr_html_())


def test_columns_can_be_wider_than_what_is_in_them_so_that_tables_match() -> None:
    narrow, wide = table((), [("a", "b")], least=(4,)), table((), [("abcd", "b")])
    assert [str(Drawing((each,))) for each in (narrow, wide)] == ["a     b", "abcd  b"]
    assert "a     b" in by_rich(Drawing((narrow,)))


def test_cells_of_one_style_are_one_text() -> None:
    drawn = cells([Span("a"), Span("b", "red"), Span("c", "red")])
    assert drawn == line("a", Span("bc", "red"))


class Page(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless_in_html(html: str) -> Page:
    """Check that a page has the elements of a drawing alone, and return it."""
    page = Page()
    page.feed(html)
    page.close()
    assert page.elements <= {"div", "pre", "span", "table", "thead", "tbody", "tr", "th", "td", "hr"}
    assert page.attributes <= {"class", "style"}
    return page


HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b31m",
    "[bold red]x[/]",
    "[/nothing]",
    "\r\n\x00",
    "\u202egpj.exe\u2066",
    "<script>alert(1)</script>",
    '"><img src=x onerror=y>',
    "</pre></div>&lt;",
    "\ud800",
    ":smile:",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_never_markup(text: str) -> None:
    drawing = Drawing((Rule(Span(text)), line(text), table((text,), [(Span(text, "red"),)])))
    shown = Span(text).text
    assert shown.isprintable()
    assert str(drawing).splitlines()[1:] == [shown] * 3
    assert [each.rstrip() for each in PAINT.sub("", by_rich(drawing, 200)).splitlines()[1:]] == [shown] * 3
    page = harmless_in_html(drawing._repr_html_())
    assert page.text.count(shown) == 4


@pytest.mark.parametrize("character", ["x", "\U0010ffff"])
def test_a_long_text_is_not_cut(character: str) -> None:
    assert Span(character * 5000).text == Span(character).text * 5000


texts = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(HOSTILE)
spans = st.builds(Span, texts, st.sampled_from(STYLES))
widths = st.integers(0, 40)
blocks = st.one_of(
    st.builds(lambda parts, indent: line(*parts, indent=indent), st.lists(spans, max_size=4), widths),
    st.builds(Rule, spans),
    st.integers(1, 4).flatmap(
        lambda count: st.builds(
            table,
            st.just(()) | st.lists(texts, min_size=count, max_size=count),
            st.lists(st.lists(spans, min_size=count, max_size=count), min_size=1, max_size=3),
            indent=widths,
            right=st.sampled_from([(), (0,), (1, 5)]),
            least=st.sampled_from([(), (3,), (1, 2, 3, 4, 5)]),
        )
    ),
)


@given(st.builds(Drawing, st.lists(blocks, max_size=4).map(tuple)), st.integers(1, 120))
def test_whatever_is_drawn_is_drawn_on_any_width_without_a_character_that_controls(
    drawing: Drawing, width: int
) -> None:
    for shown in (str(drawing), PAINT.sub("", by_rich(drawing, width, colours=True))):
        assert all(each.isprintable() for each in shown.split("\n"))
    harmless_in_html(drawing._repr_html_())
