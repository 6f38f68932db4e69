"""Drawings: lines and tables as values, which a terminal, a page of HTML and plain text show alike.

A drawing is made once, of blocks (:mod:`uvm._drawing.blocks`), and does not depend on where it is shown.
``str()`` is plain text, as wide as what is in it; rich draws it in colours and to the width of a terminal;
notebooks ask for HTML. What each needs is loaded when it is asked.

Names and paths are drawn, which guests and others chose. Text becomes part of a drawing in one place, a
:class:`~uvm._drawing.blocks.Span`, which escapes all that is not printable: no drawing holds an escape
sequence, a line end, or a character that reorders text. HTML is escaped, and rich gets no text with markup.
"""
