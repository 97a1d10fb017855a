"""Text from outside (prompts, captions, names of files and folders) where it is shown: never markup, a line more than
was meant, or what moves a terminal's cursor."""

from __future__ import annotations

import json
import re
import unicodedata

MARKS = 4  # on one letter, as many as languages need: any number of them would tower over a page
_ELSEWHERE = str.maketrans({"<": "\\u003c", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_DATA = re.compile(r"""<script[^>]*>\s*(?:var \w+ = )?(?=["\[{])""")


def one_line(text: object) -> str:
    """``text`` with runs of blanks and control characters made one space. Left out are what has no look of its own
    (joiners, directions) and more than :data:`MARKS` accents on a letter."""
    shown, marks = [], 0
    for c in str(text):
        kind = unicodedata.category(c)
        marks = marks + 1 if kind in ("Mn", "Me") else marks if kind == "Cf" else 0
        if marks <= MARKS and kind != "Cf":
            shown.append(c if c.isprintable() else " ")
    return " ".join("".join(shown).split())


def visible(text: str) -> str:
    """``text`` for a terminal or a log: what cannot be printed, line breaks and tabs apart, as ``\\x1b``."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def printable(text: str) -> str:
    """:func:`visible` in one line: a line break is ``\\n`` too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def json_for_html(text: str) -> str:
    """JSON as it can stand in a page's script: neither a tag nor a comment starts in it."""
    # Elsewhere than in strings JSON has none of these.
    return text.translate(_ELSEWHERE)


def inert_scripts(page: str) -> str:
    """``page`` (HTML) with :func:`json_for_html` of each JSON value that a script element begins with, alone or as
    ``var name = value``; where a value ends, the JSON itself says.

    Raises:
        ValueError: what such an element begins with is no JSON.
    """
    parts, at, decoder = [], 0, json.JSONDecoder()
    while match := _DATA.search(page, at):
        _, end = decoder.raw_decode(page, match.end())
        parts += [page[at : match.end()], json_for_html(page[match.end() : end])]
        at = end
    return "".join([*parts, page[at:]])
