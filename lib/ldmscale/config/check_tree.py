"""What a config must be before a schema can be asked: a tree of plain values, none of which breaks what reads them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ldmscale.text import printable

LARGEST = 2**53  # of numbers: up to here a float holds every whole one
MOST = 100_000  # values, counted wherever an alias repeats them: ten short lines of YAML can stand for billions
DEEPEST = 50
PLAIN = (str, int, float, bool, type(None))
LONGEST = 600  # characters of a sentence


def unfit(config: object) -> Iterator[str]:
    """What is wrong with the values of ``config`` whatever they are for, a sentence each, ten at most."""
    values = _walk(config, "")
    yield from islice((said for said in islice(values, MOST) if said), 10)
    if next(values, None) is not None:
        yield f"the top level has more than {MOST:,} values: something in it is repeated over and over"


def shown(sentence: str) -> str:
    """In one line, which ends somewhere whatever value it names."""
    return printable(sentence if len(sentence) <= LONGEST else f"{sentence[:LONGEST]} ...")


def _walk(value: object, key: str, depth: int = 0) -> Iterator[str]:
    """A sentence for every value below ``value``, or an empty text where it is in order."""
    where = key or "the top level"
    if depth > DEEPEST:
        yield f"{where} is nested more than {DEEPEST} levels deep"
    elif isinstance(value, dict):
        yield ""
        for name, below in value.items():
            if not isinstance(name, str):
                yield f"the key {name!r} at {where} is no text: write it in quotes"
            else:
                yield _text(name, f"the key {name!r} at {where}")
                yield from _walk(below, f"{key}.{name}" if key else name, depth + 1)
    elif isinstance(value, list):
        yield ""
        for number, below in enumerate(value):
            yield from _walk(below, f"{key}[{number}]", depth + 1)
    elif not isinstance(value, PLAIN):
        yield f"{where} is read as {type(value).__name__}, but must be text (in quotes), a number, a list or keys"
    elif isinstance(value, int | float) and abs(value) > LARGEST:
        said = str(value) if isinstance(value, float) else "a whole number of many digits"  # thousands, perhaps
        yield f"{where} is {said}, but a number must be within {LARGEST}"
    else:
        yield _text(value, where) if isinstance(value, str) else ""


def _text(text: str, where: str) -> str:
    if "\0" in text:
        return f"{where} holds a NUL character, which no file name and no caption can"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{where} holds half of a surrogate pair, which is no character"
    return ""
