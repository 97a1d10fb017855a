"""Captioned images in the COCO-captions format: a folder of images and one annotations file.

Format: https://cocodataset.org/#format-data. Real files hold surprises (blank captions, images without any, entries
for files that are gone, damaged files); each kind is counted and named, and the data is refused or used without them.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmscale.data.images import FITS, UnreadableImage, fit_image, open_image
from ldmscale.data.source import NAMES, SPLITS, Example, counted, tidy
from ldmscale.errors import UserError

PROBLEMS = {
    "unknown image": "captions of an image that is not listed",
    "duplicate id": "image ids that are listed more than once",
    "duplicate file": "files that are listed more than once",
    "outside": "file names that lead out of the image folder or are none",
    "missing": "images that are not in the folder",
    "no caption": "images without a caption",
    "bad captions": "caption files that cannot be read",
    "unreadable": "images that cannot be read",
}
THREADS = 32  # that decode images to see whether they can be read


@dataclass
class Report:
    """What a check found. problems: kind (a key of PROBLEMS) -> the names, in file order; reasons: name -> why."""

    annotations: str
    images: str
    listed: int
    usable: int = 0
    blank_captions: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems of each kind that occurs."""
        return {kind: len(names) for kind, names in self.problems.items()}

    def add(self, kind: str, name: str, reason: str = "") -> None:
        """Counts one problem."""
        self.problems.setdefault(kind, []).append(name)
        if reason:
            self.reasons[name] = reason

    def sentence(self) -> str:
        """All of it in one sentence: every kind with its count and first names."""
        parts = []
        for kind, names in self.problems.items():
            shown = [f"{n} ({self.reasons[n]})" if n in self.reasons else n for n in names[:NAMES]]
            parts.append(counted(len(names), PROBLEMS[kind], shown))
        if self.blank_captions:
            parts.append(f"{self.blank_captions} blank captions ignored")
        found = "; ".join(parts) if parts else "no problems"
        return f"{self.annotations} with images in {self.images}: {self.usable} of {self.listed} usable; {found}"


def read_annotations(path: str | Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The ``images`` and ``annotations`` lists of a COCO-captions file; other keys are ignored.

    Ids come back as text, captions with blanks and line breaks collapsed. Raises UserError where the file is not JSON,
    or an entry lacks what this package reads, naming the entry and the key.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"the annotations {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); COCO captions are a JSON object") from error
    wanted = {"images": {"id": (int, str), "file_name": str}, "annotations": {"image_id": (int, str), "caption": str}}
    if not isinstance(data, dict):
        raise UserError(
            f"{path} is not in the COCO captions format: it is not a JSON object with {' and '.join(wanted)}"
        )
    for name, keys in wanted.items():
        if not isinstance(data.get(name), list):
            raise UserError(f"{path} is not in the COCO captions format: it has no list {name!r}")
        for number, entry in enumerate(data[name]):
            if not isinstance(entry, dict):
                raise UserError(f"{path} is not in the COCO captions format: {name}[{number}] is not an object")
            for key, kind in keys.items():
                if not isinstance(entry.get(key), kind) or isinstance(entry.get(key), bool):
                    state = "lacks" if key not in entry else "has an unusable"
                    raise UserError(f"{path} is not in the COCO captions format: {name}[{number}] {state} {key!r}")
    for entry in data["annotations"]:
        entry["caption"] = tidy(entry["caption"])
        entry["image_id"] = str(entry["image_id"])
    for entry in data["images"]:
        entry["id"] = str(entry["id"])
    return data["images"], data["annotations"]


class CocoSource:
    """A source (:class:`ldmscale.data.source.Source`) of images and captions in the COCO-captions format.

    fit: see :func:`ldmscale.data.images.fit_image`. heldout, tuning: numbers of examples; the rest is for training.
    Images with the same value of the field ``split_by`` (default: each image by itself) stay in one split; where the
    last such group of a split is larger than what the split still needs, its surplus is left out of all splits.
    on_error: what to do with bad entries, ``refuse`` (UserError at first use) or ``skip``. The splits follow from the
    seed and a hash of the group's value, so they do not depend on the order of the file.

    The first use of ``size`` or ``example`` runs :meth:`check`, which decodes every image once.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        image_size: int,
        fit: str,
        heldout: int,
        tuning: int,
        split_by: str | None = None,
        on_error: str = "refuse",
        seed: int = 0,
    ):
        if fit not in FITS:
            raise UserError(f"fit is {fit!r}, it must be one of {', '.join(FITS)}")
        if on_error not in ("refuse", "skip"):
            raise UserError(f"on_error is {on_error!r}, it must be refuse or skip")
        self.annotations, self.folder = Path(annotations), Path(images)
        self.image_size, self.fit, self.split_by, self.on_error, self.seed = image_size, fit, split_by, on_error, seed
        self._wanted = {"heldout": heldout, "tuning": tuning}
        self._report: Report | None = None
        self._splits: dict[str, list[dict[str, Any]]] | None = None
        if not self.folder.is_dir():
            raise UserError(f"the image folder {self.folder} does not exist")
        self._images, self._captions = self._read()
        if split_by is not None:
            for entry in self._images:
                if split_by not in entry:
                    raise UserError(
                        f"split_by is {split_by!r}, but image {entry['id']} in {self.annotations} has no such field"
                    )

    def _read(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return read_annotations(self.annotations)

    def size(self, split: str) -> int:
        """Number of examples in ``split``."""
        return len(self._prepared()[split])

    def group(self, split: str, index: int) -> str:
        """The value, as JSON, that kept this example's group in one split."""
        return self._group(self._prepared()[split][index])

    def example(self, split: str, index: int) -> Example:
        """Image, all its captions, and the image id as key. Raises UserError where the file has changed since."""
        entry = self._prepared()[split][index]
        path = self.folder / entry["file_name"]
        try:
            image = fit_image(open_image(path), self.image_size, self.fit)
        except UnreadableImage as error:
            raise UserError(f"{path} could be read a moment ago and cannot any more: {error}") from error
        return Example(image, entry["captions"], entry["id"])

    def check(self) -> Report:
        """Looks at every entry and decodes every image; the same report again when called again."""
        if self._report is None:
            self._report, self._usable = self._inspect()
        return self._report

    def _inspect(self) -> tuple[Report, list[dict[str, Any]]]:
        report = Report(str(self.annotations), str(self.folder), len(self._images))
        ids = Counter(entry["id"] for entry in self._images)
        captions: dict[Any, list[str]] = {}
        for entry in self._captions:
            if entry["image_id"] not in ids:
                report.add("unknown image", entry["image_id"])
            elif not entry["caption"]:
                report.blank_captions += 1
            else:
                captions.setdefault(entry["image_id"], []).append(entry["caption"])
        candidates, seen = [], set()
        for image_id, count in ids.items():
            if count > 1:
                report.add("duplicate id", image_id)
        for entry in self._images:
            name = entry["file_name"]
            if ids[entry["id"]] > 1:
                continue  # which of the entries its captions mean is unknown
            path = locate(self.folder, name)
            if path is None:
                report.add("outside", name)
            elif not os.path.isfile(path):
                report.add("missing", name)
            elif path in seen:
                report.add("duplicate file", name)  # it could be in two splits
            elif entry["id"] not in captions:
                report.add("no caption", name)
            else:
                candidates.append({**entry, "captions": tuple(captions[entry["id"]])})
                seen.add(path)
        usable = []
        paths = [self.folder / entry["file_name"] for entry in candidates]
        # PIL decodes outside the interpreter lock. Its warnings, on odd metadata, are silenced out here: the filter
        # belongs to the process, not to a thread.
        with warnings.catch_warnings(), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            warnings.simplefilter("ignore")
            reasons = list(pool.map(_unreadable, paths))
        for entry, reason in zip(candidates, reasons, strict=True):
            if reason is None:
                usable.append(entry)
            else:
                report.add("unreadable", entry["file_name"], reason)
        report.usable = len(usable)
        return report, usable

    def _group(self, entry: dict[str, Any]) -> str:
        value = entry["id"] if self.split_by is None else entry[self.split_by]
        # An image without a value is a group of its own, not one with all others that lack it.
        value = ["id", entry["id"]] if value is None else value
        return json.dumps(value, sort_keys=True)

    def _order(self, group: str) -> bytes:
        return hashlib.blake2b(json.dumps([self.seed, group]).encode(), digest_size=16).digest()

    def _prepared(self) -> dict[str, list[dict[str, Any]]]:
        if self._splits is not None:
            return self._splits
        report = self.check()
        if report.problems and self.on_error == "refuse":
            raise UserError(f"{report.sentence()}. Mend them, or set on_error to skip to leave them out")
        groups: dict[str, list[dict[str, Any]]] = {}
        for entry in sorted(self._usable, key=lambda entry: self._order(entry["id"])):
            groups.setdefault(self._group(entry), []).append(entry)
        splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        for group in sorted(groups, key=self._order):
            split = next((s for s, count in self._wanted.items() if len(splits[s]) < count), "train")
            room = self._wanted[split] - len(splits[split]) if split != "train" else None
            splits[split] += groups[group][:room]
        if not splits["train"] or any(len(splits[split]) < count for split, count in self._wanted.items()):
            by = f" in {len(groups)} groups by {self.split_by!r}" if self.split_by else ""
            raise UserError(
                f"{self.annotations} has {len(self._usable)} usable images{by}: too few for {self._wanted['heldout']} "
                f"held-out and {self._wanted['tuning']} tuning images and at least one for training"
            )
        # Training images in an order of their own, not group by group.
        splits["train"].sort(key=lambda entry: self._order(entry["id"]))
        self._splits = splits
        return splits


def locate(folder: Path, name: str) -> str | None:
    """The real path of a listed file, or None where it is not inside ``folder``, symbolic links followed."""
    root = os.path.realpath(folder)
    try:
        path = os.path.realpath(os.path.join(root, name))
    except ValueError:  # NUL or half a surrogate pair
        return None
    return path if path.startswith(os.path.join(root, "")) and not os.path.isabs(name) else None


def _unreadable(path: Path) -> str | None:
    try:
        open_image(path)
    except UnreadableImage as error:
        return str(error)
    return None
