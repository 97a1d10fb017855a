"""Digests, manifests and whole-or-nothing files: what makes a stale or half-written artefact impossible to mistake.

Every stage of the study has a digest: a hash of its name, its version, the part of the config that it depends on and
the digests of the stages that it reads. Digests follow from the config alone, so a rule knows before it starts what
its inputs must have been made from. Each artefact's manifest carries the digest it was made under, and a reader
refuses one that is not what its own config asks for.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ldmscale import hosts, storage
from ldmscale.errors import UserError
from ldmscale.files import replacing

# Raise a stage's number when a change in the library changes what the stage writes: edits under lib/ do not re-run
# anything by themselves (Snakemake watches the script files alone), a changed digest does.
VERSIONS = {
    "data": 1,
    "tokenizer": 1,
    "autoencoder": 1,
    "clip": 2,
    "text_encoder": 1,
    "latents": 2,
    "prompts": 1,
    "reference": 1,
    "pretrain": 1,
    "published": 1,
    "validation": 1,
    "pairs": 1,
    "baselines": 1,
    "superres": 1,
    "subjects": 1,
    "class_images": 1,
    "dreambooth": 1,
    "codi": 1,
    "guided": 1,
    "costs": 1,
    "timing": 1,
    "weights": 1,
    "cell": 1,
    "score": 1,
    "scores": 1,
    "fits": 1,
    "figure": 1,
    "claims": 1,
}


def digest(stage: str, *parts: object) -> str:
    """16 hex digits naming what ``stage`` makes from ``parts`` (JSON-able values and other digests)."""
    text = json.dumps([stage, VERSIONS[stage], parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of a folder's files; ``"absent"`` where there is nothing
    (a path still to be filled in). Of a ``gs://`` URI as :func:`ldmscale.storage.digest`."""
    if storage.is_uri(path):
        return storage.digest(str(path))
    try:
        if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
            return "absent"  # a pipe or a device, which never ends
        if Path(path).is_dir():
            files = sorted(file for file in Path(path).iterdir() if file.is_file())
            text = json.dumps([[file.name, file_digest(file)] for file in files])
            return hashlib.sha256(text.encode()).hexdigest()[:16]
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    except OSError:
        return "absent"


ENDS = 4096  # bytes at either end of a file; a PNG's checksum of all its pixels is in the last ones


def listing_digest(folder: str | Path) -> str:
    """A hash of a folder's files by name, size and both ends, or ``"absent"``: of many large images, not every byte.

    Of a ``gs://`` URI as :func:`ldmscale.storage.digest`."""
    if storage.is_uri(folder):
        return storage.digest(str(folder))
    try:
        files = sorted((entry.name, entry.path) for entry in os.scandir(folder) if entry.is_file())
        found = hashlib.sha256()
        for name, path in files:  # at every start, of as many as there are: without Python's file objects
            file = os.open(path, os.O_RDONLY)
            try:
                size = os.fstat(file).st_size
                first = os.pread(file, ENDS, 0)
                last = first if size <= ENDS else os.pread(file, ENDS, size - ENDS)
            finally:
                os.close(file)
            found.update(json.dumps([name, size]).encode() + first + last)
    except OSError:
        return "absent"
    return found.hexdigest()[:16]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` on success, removed on failure.

    Of a job's hosts the first alone leaves the file: what another writes is removed in any case, and not beside it.
    """
    path = Path(path)
    if hosts.writes():
        with replacing(path) as temporary:
            yield temporary
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_checked(path: str | Path, value: Mapping[str, object]) -> None:
    """:func:`write_json` with a checksum inside, which :func:`read_json` checks and takes away."""
    value = json.loads(json.dumps(value))  # as it will be read
    write_json(path, {**value, "crc32": json_crc32(value)})


def read_json(path: str | Path) -> dict:
    """Read a JSON object; a missing or damaged file is a :class:`UserError` naming it, also where its ``crc32`` is not
    its own."""
    return _read(path)[0]


def _read(path: str | Path) -> tuple[dict, bool]:
    """A JSON object, and whether it has a checksum."""
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the rule that makes it (snakemake --forcerun with its rule)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): delete it and run snakemake again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object: delete it and run snakemake again")
    said = value.pop("crc32", None)
    if said not in (None, json_crc32(value)):
        raise UserError(f"{path} is damaged (its checksum is another): delete it and run snakemake again")
    return value, said is not None


def write_manifest(path: str | Path, stage: str, stage_digest: str, **content: object) -> None:
    """Write the manifest of an artefact: its stage, the digest of what made it, ``content``, and a checksum of all."""
    write_checked(path, {"stage": stage, "digest": stage_digest, **content})


def read_manifest(path: str | Path, stage: str, expected: str) -> dict:
    """Read a manifest and refuse one that was not made from what the present config says.

    Raises:
        UserError: the file is missing, damaged, of another stage, or made from other inputs than ``expected`` names.
    """
    manifest, checked = _read(path)
    if manifest.get("stage") != stage or manifest.get("digest") != expected:
        raise UserError(
            f"{path} was made from a different config or other inputs (it says {manifest.get('stage')} "
            f"{manifest.get('digest')}, this run needs {stage} {expected}): run `snakemake --forcerun {stage}` to make "
            "it again"
        )
    if not checked:
        raise UserError(f"{path} is damaged (it has no checksum): delete it and run snakemake again")
    return manifest


def json_crc32(value: Mapping[str, object]) -> int:
    """CRC-32 of ``value`` as JSON, whatever the order of its keys."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def is_current(path: str | Path, stage: str, expected: str) -> bool:
    """Whether ``path`` is a whole manifest of ``stage`` made under the digest ``expected``."""
    try:
        read_manifest(path, stage, expected)
    except UserError:
        return False
    return True


def require_keys(mapping: Mapping, keys: tuple[str, ...], where: str) -> None:
    """Raise :class:`UserError` naming the first of ``keys`` that ``mapping`` lacks."""
    for key in keys:
        if key not in mapping:
            raise UserError(f"{where} has no '{key}'")
