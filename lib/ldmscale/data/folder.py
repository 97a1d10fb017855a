"""A folder of captioned images: beside ``cat.jpg`` its captions, ``cat.txt`` (one a line) or ``cat.json``, or for all
images one ``metadata.jsonl`` (https://huggingface.co/docs/datasets/image_dataset#imagefolder)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ldmscale.data.coco import CocoSource, Report, locate
from ldmscale.data.source import tidy

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA = "metadata.jsonl"
KEYS = ("captions", "caption", "text")  # of a JSON object; the first that is there counts


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, also where it is nested deeper than Python reads."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def captions_in(content: object) -> list[str]:
    """The captions of a JSON object: a text or a list of texts under the first of ``KEYS`` that it has.

    Raises ValueError saying what is wrong.
    """
    found = next((content[key] for key in KEYS if key in content), None) if isinstance(content, dict) else None
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"no text under {' or '.join(KEYS)}")
    return texts


class FolderSource(CocoSource):
    """A source of the images that lie in ``images`` itself (not in folders below), with captions beside them.

    What is bad is counted, and refused or left out, and the splits are made, as :class:`CocoSource` does it.
    """

    def __init__(
        self, images: str | Path, image_size: int, fit: str, heldout: int, tuning: int, on_error: str, seed: int
    ):
        self._bad: list[tuple[str, str]] = []
        super().__init__(images, images, image_size, fit, heldout, tuning, on_error=on_error, seed=seed)

    def _read(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        paths = sorted(path for path in self.folder.iterdir() if path.suffix.lower() in SUFFIXES)
        images = [{"id": path.name, "file_name": path.name} for path in paths]
        listed = self._metadata()
        captions = []
        for path in paths:
            for text in [*listed.pop(path.name, ()), *self._beside(path)]:
                captions.append({"image_id": path.name, "caption": tidy(text)})
        captions += [{"image_id": name, "caption": ""} for name in listed]  # of images that are not there
        return images, captions

    def _metadata(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        path = self.folder / METADATA
        for number, line in enumerate(self._text(path).splitlines(), 1):
            try:
                if line.strip():
                    content = parsed(line)
                    found.setdefault(str(content["file_name"]), []).extend(captions_in(content))
            except (ValueError, KeyError, TypeError) as error:
                self._bad.append((f"{METADATA} line {number}", f"{type(error).__name__}: {error}"))
        return found

    def _beside(self, path: Path) -> list[str]:
        lines, beside = self._text(path.with_suffix(".txt")).splitlines(), path.with_suffix(".json")
        try:
            return lines + (captions_in(parsed(text)) if (text := self._text(beside)) else [])
        except ValueError as error:
            self._bad.append((beside.name, str(error)))
            return lines

    def _text(self, path: Path) -> str:
        if not os.path.lexists(path):
            return ""
        inside = locate(os.path.realpath(self.folder), path.name)
        if inside is None or not os.path.isfile(inside):  # a pipe would be waited for
            why = "no regular file" if inside else "a link that leads out of the folder"
            self._bad.append((path.name, f"it is {why}"))
            return ""
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            self._bad.append((path.name, str(error)))
            return ""

    def _inspect(self) -> tuple[Report, list[dict[str, Any]]]:
        report, usable = super()._inspect()
        for name, why in self._bad:
            report.add("bad captions", name, why)
        return report, usable
