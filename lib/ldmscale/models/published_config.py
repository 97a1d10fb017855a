"""The ``config.json`` beside published weights, read with its library's defaults and refused where it says something
that our networks are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ldmscale.errors import UserError

Made = TypeVar("Made")


class PublishedConfig:
    """The keys of ``path``: ``shape`` are those that are read, with the value that one has where it is not there (the
    default of the library that wrote it), ``fixed`` those whose value has to be the given one or, of a tuple, any; a
    list of one value, as one a level, counts as it.

    Raises UserError if the file is missing, no JSON object, or not as ``fixed`` says.
    """

    def __init__(self, path: str | Path, shape: Mapping[str, Any], fixed: Mapping[str, Any]):
        self.path = Path(path)
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): weights in this form come with it") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON ({error})") from None
        if not isinstance(content, dict):
            raise UserError(f"{path} does not hold a JSON object")
        self.given = content
        self.values: dict[str, Any] = {**shape, **content}
        self.known = {*shape, *fixed}
        for key, accepted in fixed.items():
            accepted = accepted if isinstance(accepted, tuple) else (accepted,)
            value = content.get(key, accepted[0])
            if not all(part in accepted for part in (value if isinstance(value, list) else [value])):
                raise self.refuse(key, json.dumps(accepted[0]))

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def refuse(self, key: str, need: str) -> UserError:
        """What is said of a value that is not ``need``."""
        return UserError(f"{self.path}: {key} is {json.dumps(self.values.get(key))}, but must be {need}")

    def whole(self, key: str) -> int:
        """A positive whole number; a list of the same one counts as it."""
        numbers = self.wholes(key)
        if len(set(numbers)) != 1:
            raise self.refuse(key, "one number for every level")
        return numbers[0]

    def wholes(self, key: str) -> tuple[int, ...]:
        """A list of positive whole numbers, or one alone."""
        value = self.values.get(key)
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(type(n) is int and n > 0 for n in numbers):
            raise self.refuse(key, "positive whole numbers")
        return tuple(numbers)

    def number(self, key: str) -> float:
        """A positive number."""
        value = self.values.get(key)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.refuse(key, "a positive number")
        return value

    def multiples(self, key: str) -> tuple[int, tuple[int, ...]]:
        """Widths of levels as the first and each one's multiple of it."""
        widths = self.wholes(key)
        if any(width % widths[0] for width in widths):
            raise self.refuse(key, f"whole multiples of the first, {widths[0]}")
        return widths[0], tuple(width // widths[0] for width in widths)

    def refuse_others(self, free: Iterable[str]) -> None:
        """Refuse a key that is neither known nor in ``free`` and says something: it may change the network."""
        for key, value in self.given.items():
            if key not in self.known and key not in free and not key.startswith("_") and value:
                raise UserError(f"{self.path} has the key '{key}', which is unknown here: it may change the network")

    def made(self, kind: Callable[..., Made], *args: Any, **kwargs: Any) -> Made:
        """``kind(*args, **kwargs)``; what it refuses is said with the file's name."""
        try:
            return kind(*args, **kwargs)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
