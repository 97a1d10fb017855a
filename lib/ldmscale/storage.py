"""Artefacts in a bucket: what is heavy lies at ``gs://``, and beside its place on disk a small manifest that names it.

With a storage root (``storage:`` in the config), :func:`push` uploads a file once it is whole and writes
``<file>.stored.json`` beside it: the object's URI, size and checksum. :func:`fetch` downloads what such a manifest
names where the file is gone or another. So a file on disk is a cache that may be deleted, Snakemake looks at small
local files alone, and an object that no manifest names, or that is not the one it names, is never read. Without a
storage root nothing is written and nothing imported. Inputs may be ``gs://`` URIs too: :func:`fetch` keeps copies in
``.cache/inputs``. How objects travel, and what happens when they do not, says :mod:`ldmscale.bucket`.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from ldmscale import bucket
from ldmscale.bucket import Object, StorageError
from ldmscale.errors import UserError

ROOT = "LDMSCALE_STORAGE"  # the environment's name for the storage root: jobs inherit it
INPUTS = ".cache/inputs"
SUFFIX = ".stored.json"
STREAMS = 16  # files of a folder downloaded at once


def is_uri(path: str | Path) -> bool:
    """Whether ``path`` is in a bucket."""
    return str(path).startswith("gs:/")


def uri(path: str | Path) -> str | None:
    """Where ``path``, in the working folder, lies in the storage root; None without a root, or for another path."""
    root, inside = os.environ.get(ROOT), os.path.relpath(path)
    return f"{root.rstrip('/')}/{inside}" if root and not inside.startswith("..") else None


def stored(path: str | Path) -> Path:
    """The small manifest of the object that holds ``path``."""
    return Path(f"{path}{SUFFIX}")


def exists(path: str | Path) -> bool:
    """Whether ``path`` can be fetched: it is on disk, or a manifest says where it is. Asks nothing of the bucket."""
    return Path(path).is_file() or stored(path).is_file()


def glob(folder: str | Path, pattern: str) -> list[Path]:
    """Paths of ``folder``, on disk or in the bucket, whose names match ``pattern``; sorted."""
    in_bucket = (path.with_name(path.name.removesuffix(SUFFIX)) for path in Path(folder).glob(pattern + SUFFIX))
    return sorted({*Path(folder).glob(pattern), *in_bucket})


def push(path: str | Path) -> None:
    """Upload a file that has just been written, if there is a storage root. Other hosts than the first do nothing.

    Raises:
        StorageError: as :func:`ldmscale.bucket.upload`.
    """
    from ldmscale import hosts
    from ldmscale.provenance import write_json

    if not hosts.writes():
        return
    stored(path).unlink(missing_ok=True)  # it names what was here before
    if target := uri(path):
        write_json(stored(path), asdict(bucket.upload(path, target)))


def fetch(path: str | Path, beside: bool = False) -> Path:
    """Make ``path`` readable on disk and say where: itself, downloaded where it is stored in the bucket and the file
    here is gone or another; of a ``gs://`` file or folder a current copy, with ``beside`` of a file's folder too.

    Raises:
        StorageError: the bucket is out of reach, or has no such input.
        UserError: the object is gone, or is not the one that was stored.
    """
    if is_uri(path):
        return _fetch_input(str(path), beside)
    if wanted := _stored(path):
        bucket.download(wanted, Path(path))
    return Path(path)


def remove(path: str | Path) -> None:
    """Delete ``path``, from the bucket too. Raises StorageError."""
    if there := _stored(path):
        bucket.delete(there.uri)
        stored(path).unlink()
    Path(path).unlink(missing_ok=True)


def digest(path: str) -> str:
    """16 hex digits of a ``gs://`` file's or folder's names, sizes and checksums, as the bucket has them; ``"absent"``
    where there is nothing. Nothing is downloaded. Raises StorageError."""
    found = [(name, about.size, about.crc32c) for name, about in sorted(bucket.listed(path).items())]
    return sha256(json.dumps(found).encode()).hexdigest()[:16] if found else "absent"


def _stored(path: str | Path) -> Object | None:
    """The object that holds ``path``, if it is in the bucket."""
    try:
        return Object(**json.loads(stored(path).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError):
        raise UserError(f"{stored(path)} is damaged: delete it, or run the rule that makes {path} again") from None


def _fetch_input(path: str, beside: bool) -> Path:
    """A current copy of a ``gs://`` file or folder, or of a file's folder; where its counterpart is."""
    found, (root, name) = bucket.listed(path), bucket.parts(path)
    folder, inside = name, ""
    if beside and "" in found:
        folder, _, inside = name.rpartition("/")
        found = bucket.listed(f"gs://{root}/{folder}/")
    if not found:
        raise StorageError(f"gs://{root}/{name} does not exist: give the URI of an object or of a folder of objects")
    place = Path(INPUTS) / root / folder
    with ThreadPoolExecutor(STREAMS) as streams:
        for _ in streams.map(lambda item: bucket.download(item[1], place / item[0]), found.items()):
            pass
    return place / inside
