"""Windows command lines."""

from __future__ import annotations


def split_command_line(line: str) -> list[str]:
    """Split a command line as Windows programs do: the inverse of :func:`subprocess.list2cmdline`.

    Backslashes stand for themselves, except before a quote: there two make one, and an odd one escapes it.
    """
    args: list[str] = []
    word: str | None = None
    quoted = False
    at = 0
    while at < len(line):
        slashes = len(line) - at - len(line[at:].lstrip("\\"))
        at += slashes
        before_quote = line[at : at + 1] == '"'
        escaped = before_quote and slashes % 2 == 1
        if slashes:
            word = (word or "") + "\\" * (slashes // 2 if before_quote else slashes)
        if at == len(line):
            break
        if line[at] == '"' and not escaped:
            quoted = not quoted
            word = word or ""
        elif line[at] in " \t" and not quoted:
            args += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + line[at]
        at += 1
    return args if word is None else [*args, word]
