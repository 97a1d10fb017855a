"""DreamBooth subjects: a few images of one thing each, and prompts that place it elsewhere (arXiv 2208.12242).

Format: https://github.com/google/dreambooth, a folder of images per subject beside ``prompts_and_classes.txt``, whose
"Classes" table names each subject's class and whose two prompt lists, for objects and for live subjects, look like
Python and are not. The table lists all 30 subjects, of which a folder may hold a few.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldmscale.config.study import DREAMBOOTH_PROMPTS as PROMPT_FILE
from ldmscale.data.images import FITS, UnreadableImage, fit_image, open_image
from ldmscale.errors import UserError

IDENTIFIER = "sks"  # the rare word of public DreamBooth trainers
# The file does not say which subjects are live; these are the dataset's classes that are.
LIVE_CLASSES = ("cat", "dog")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LEAST_IMAGES = 2  # one image alone leaves no second view to be told from

_SECTIONS = {
    "classes": "classes",
    "prompts": "",
    "object prompts": "object",
    "live subject prompts": "live",
}
_ROLES = {"unique_token": "{0}", "class_token": "{1}"}
_PROMPT = re.compile(
    r"""(?P<quote>['"])(?P<text>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote)\.format\((?P<args>[^()]*)\),?"""
)
_BRACKETS = re.compile(r"prompt_list\s*=\s*\[|\]|\[")


@dataclass(frozen=True)
class Subject:
    """One subject.

    images: uint8 [N,S,S,3], N at least 2; class_name: the word for its kind; templates: prompts in which ``{0}`` is
    the place of the identifier and ``{1}`` that of the class; live: an animal, whose templates differ.
    """

    name: str
    class_name: str
    live: bool
    images: np.ndarray
    templates: tuple[str, ...]


def subjects(folder: str | Path, size: int, fit: str = "crop", names: Sequence[str] | None = None) -> list[Subject]:
    """The subjects of a dataset in google/dreambooth's layout, by name, with square images of ``size`` pixels.

    ``folder`` holds the prompt file and a folder per subject, or is the repository, whose ``dataset`` does. ``names``
    chooses subjects, in that order; the others are not read. fit: see :func:`ldmscale.data.images.fit_image`. Images
    are in order of their file names; other files in a subject's folder are ignored.

    Raises UserError for a missing or foreign prompt file, a subject that is not in it, fewer than 2 images of a
    subject, and images that cannot be read.
    """
    if fit not in FITS:
        raise UserError(f"fit is {fit!r}, it must be one of {', '.join(FITS)}")
    root = Path(folder)
    if not (root / PROMPT_FILE).is_file() and (root / "dataset").is_dir():
        root = root / "dataset"
    if not root.is_dir():
        raise UserError(f"the DreamBooth folder {root} does not exist")
    classes, templates = read_prompt_file(root / PROMPT_FILE)
    present = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not present:
        raise UserError(f"{root} holds no subject: it must have a folder of images for each, beside {PROMPT_FILE}")
    for name in present if names is None else names:
        if name not in present:
            raise UserError(f"there is no subject {name!r} in {root}; it holds {', '.join(present)}")
        if name not in classes:
            raise UserError(f"the subject {name!r} in {root} is not in the Classes table of {root / PROMPT_FILE}")
    found = []
    for name in present if names is None else names:
        live = classes[name] in LIVE_CLASSES
        images = _read_images(root / name, size, fit)
        found.append(Subject(name, classes[name], live, images, templates["live" if live else "object"]))
    return found


def prompts(subject: Subject, token: str | None = IDENTIFIER) -> list[str]:
    """The subject's prompts, as "a sks dog in the jungle"; with ``token`` None, of its class: "a dog in the jungle".

    Raises UserError for a blank token.
    """
    return [_fill(template, subject.class_name, token) for template in subject.templates]


def name_prompt(subject: Subject, token: str | None = IDENTIFIER) -> str:
    """What the subject's own images are called in training, "a sks dog"; with ``token`` None, its class: "a dog"."""
    return _fill("a {0} {1}", subject.class_name, token)


def _fill(template: str, class_name: str, token: str | None) -> str:
    if token is not None and not token.strip():
        raise UserError("the DreamBooth identifier is blank; it must be a rare word, as sks")
    words = {"{0}": token or "", "{1}": class_name}
    # In one pass, so that a "{1}" in a token stays one.
    return " ".join(re.sub(r"\{[01]\}", lambda match: words[match[0]], template).split())


def read_prompt_file(path: str | Path) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """The class of each subject, and the prompt templates of ``object`` and ``live`` subjects.

    In a template ``{0}`` is the identifier and ``{1}`` the class, whatever the order of the file's own arguments.
    Nothing in the file is executed. Raises UserError where it cannot be read or is not such a file, naming the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"DreamBooth's prompt file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not DreamBooth's {PROMPT_FILE}: it is not text in UTF-8") from error
    classes: dict[str, str] = {}
    templates: dict[str, list[str]] = {"object": [], "live": []}
    section = None
    for number, line in enumerate(lines, 1):
        line = line.strip()
        heading = line.rstrip(":").lower()
        if not line:
            continue
        if heading in _SECTIONS:
            section = _SECTIONS[heading]
        elif section == "classes":
            cells = [cell.strip() for cell in line.split(",")]
            if len(cells) != 2 or not all(cells):
                raise _foreign(path, f"line {number} is not 'subject,class'")
            if cells != ["subject_name", "class"] and classes.setdefault(*cells) != cells[1]:
                raise _foreign(path, f"line {number} gives {cells[0]!r} a second class")
        elif section in templates:
            if not _BRACKETS.fullmatch(line):
                templates[section].append(_template(path, number, line))
        else:
            raise _foreign(path, f"line {number} is under none of its headings (Classes, Object Prompts, ...)")
    if not classes:
        raise _foreign(path, "it has no table under the heading 'Classes'")
    for heading, kind in _SECTIONS.items():
        if kind in templates and not templates[kind]:
            raise _foreign(path, f"it has no prompts under the heading '{heading.title()}'")
    return classes, {kind: tuple(found) for kind, found in templates.items()}


def _template(path: Path, number: int, line: str) -> str:
    match = _PROMPT.fullmatch(line)
    if match is None:
        raise _foreign(path, f"line {number} is not a prompt like 'a {{0}} {{1}}'.format(unique_token, class_token)")
    text = re.sub(r"\\(.)", r"\1", match["text"])
    arguments = [name.strip() for name in match["args"].split(",") if name.strip()]
    places = {f"{{{place}}}": _ROLES.get(name) for place, name in enumerate(arguments)}
    used = re.findall(r"\{[^{}]*\}", text)
    if sorted(places.get(field) or "" for field in used) != sorted(_ROLES.values()):
        raise _foreign(path, f"the prompt in line {number} does not use unique_token and class_token once each")
    return re.sub(r"\{[^{}]*\}", lambda field: places[field[0]], text)


def _foreign(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not DreamBooth's {PROMPT_FILE}: {why}")


def _read_images(folder: Path, size: int, fit: str) -> np.ndarray:
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )
    if len(files) < LEAST_IMAGES:
        have = f"one image ({files[0].name})" if files else f"no image ({', '.join(SUFFIXES)})"
        raise UserError(f"the subject folder {folder} holds {have}; a subject needs at least {LEAST_IMAGES}")
    images, bad = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, on odd metadata
        for path in files:
            try:
                images.append(fit_image(open_image(path), size, fit))
            except UnreadableImage as error:
                bad.append(f"{path.name} ({error})")
    if bad:
        raise UserError(f"{len(bad)} of {len(files)} images in {folder} cannot be read: {', '.join(bad)}")
    return np.stack(images)
