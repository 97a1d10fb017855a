"""Single objects of Google Cloud Storage through gcsfs: whole, checked, and tried again where that may help.

An object appears when its last byte has arrived, or not at all; a download is written beside its place, checked and
renamed. A transfer that fails in passing is tried again, ``len(WAITS)`` times after the first, with at most
``sum(WAITS)`` = 63 seconds of waiting between tries (up to half of each wait is left out at random), and at most
``SILENCE`` seconds a try for a server that says nothing. ``STORAGE_EMULATOR_HOST`` in the environment puts an emulator
in Google's place.
"""

from __future__ import annotations

import base64
import logging
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ldmscale.errors import UserError
from ldmscale.files import BLOCK, replacing

WAITS = (1, 2, 4, 8, 16, 32)  # seconds before each try after the first
SILENCE = 60  # seconds
PARALLEL = 10**8  # bytes from which on gcsfs reads one file in several streams
URI = re.compile(r"gs:/+([^/]+)/*(.*)")  # a Path makes one slash of two


class StorageError(UserError):
    """The bucket could not be read or written: says nothing about whether what was asked for is whole."""


@dataclass(frozen=True)
class Object:
    """An object as the bucket, or a manifest, describes it; ``crc32c`` in base64, ``time`` in nanoseconds."""

    uri: str
    size: int
    crc32c: str
    time: int


def parts(uri: str) -> tuple[str, str]:
    """Bucket and name of a ``gs://`` URI; StorageError where it is none."""
    if not (match := URI.fullmatch(uri)):
        raise StorageError(f"{uri} is no URI of a bucket: it must be like gs://bucket/name")
    return match[1], match[2]


def upload(path: str | Path, uri: str) -> Object:
    """Send a file to ``uri`` and see that it has arrived.

    Raises:
        StorageError: the bucket is missing, closed or out of reach, or what arrives is not what is sent.
    """
    about, crc32c = os.stat(path), _crc32c(path)

    def send() -> None:
        _bucket().put_file(str(path), uri, consistency="none")
        found = _describe(uri)
        if (found.size, found.crc32c) != (about.st_size, crc32c):
            raise _Damaged(f"what has arrived is not what was sent ({found.size} of {about.st_size} bytes)")

    absent = (
        f"there is no bucket '{parts(uri)[0]}', or it is hidden from you: mend `storage` in the config, or create it"
    )
    _trying(send, f"{uri} could not be written", absent)
    return Object(uri, about.st_size, crc32c, about.st_mtime_ns)


def download(wanted: Object, path: Path) -> None:
    """Bring ``wanted`` to ``path``, whole or not at all, unless it is there. Every host may: who is last wins.

    Raises:
        StorageError: the bucket is out of reach.
        UserError: there is no such object, or it is not the one that ``wanted`` describes.
    """
    try:
        here = os.stat(path)
        if here.st_size == wanted.size:
            if here.st_mtime_ns == wanted.time:
                return
            if _crc32c(path) == wanted.crc32c:  # a copy
                return os.utime(path, ns=(wanted.time, wanted.time))
    except FileNotFoundError:
        pass
    absent = "the object is gone: run the rule that makes it again with --forcerun"
    with replacing(path) as temporary:

        def bring() -> None:
            streams = {"concurrency": 1} if wanted.size < PARALLEL else {}
            _bucket().get_file(wanted.uri, str(temporary), consistency="none", **streams)
            if (os.path.getsize(temporary), _crc32c(temporary)) != (wanted.size, wanted.crc32c):
                raise _Damaged(f"it is not the object of {wanted.size} bytes that was stored")

        _trying(bring, f"{wanted.uri} could not be read", absent, lost=UserError)
        os.utime(temporary, ns=(wanted.time, wanted.time))


def emulator() -> str | None:
    """What is in Google's place, None for Google; tells those who use buckets of it, before they are imported."""
    # Else gcsfs's first request waits a minute for a gRPC service that an emulator does not have.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    there = os.environ.get("STORAGE_EMULATOR_HOST")
    if there:
        os.environ["TENSORSTORE_GCS_HTTP_URL"] = there  # TensorStore's name for it
    return there


def delete(uri: str) -> None:
    """Delete an object, if it is there. Raises StorageError."""

    def ask() -> None:
        try:
            _bucket().call("DELETE", "b/{}/o/{}", *parts(uri))
        except FileNotFoundError:
            pass

    _trying(ask, f"{uri} could not be deleted")


@cache
def listed(uri: str) -> dict[str, Object]:
    """The objects of a folder by name within it, or of a file, which is called ``""``; none where there is nothing.

    The bucket is asked once a process and URI. Raises StorageError.
    """
    bucket, name = parts(uri)
    prefix = f"{name.rstrip('/')}/".lstrip("/")

    def ask() -> dict[str, Object]:
        if name and not name.endswith("/"):
            try:
                return {"": _describe(uri)}
            except FileNotFoundError:
                pass
        found, token, more = {}, None, True
        while more:
            page = _bucket().call("GET", "b/{}/o", bucket, prefix=prefix, pageToken=token, json_out=True)
            objects = (_object(bucket, item) for item in page.get("items", []) if not item["name"].endswith("/"))
            found |= {about.uri.removeprefix(f"gs://{bucket}/{prefix}"): about for about in objects}
            more = token = page.get("nextPageToken")
        return found

    def ask_bucket() -> dict[str, Object]:
        try:
            return ask()
        except FileNotFoundError:  # no such bucket
            return {}

    return _trying(ask_bucket, f"gs://{bucket}/{name} could not be looked up")


class _Damaged(Exception):
    """What arrived is not what was sent."""


def _trying(act: Callable[[], Any], what: str, absent: str = "it is gone", lost: type[UserError] = StorageError) -> Any:
    """``act()``, again after WAITS where it fails in passing.

    Where it does not pass, a StorageError: ``what`` could not be done and why, of a 404 that ``absent``. Instead of it
    ``lost`` where there is no such object, or always another than was asked for.
    """
    import aiohttp
    from gcsfs.retry import RETRIABLE_EXCEPTIONS, HttpError, is_retriable
    from google.auth.exceptions import DefaultCredentialsError

    network = (*RETRIABLE_EXCEPTIONS, aiohttp.ClientError, ConnectionError, TimeoutError, HttpError, _Damaged)
    for wait in (*WAITS, None):
        try:
            return act()
        except Exception as caught:
            # gcsfs closes the session of an upload that failed, which may fail in its turn.
            error = caught.__context__ if isinstance(caught.__context__, network) else caught
        if isinstance(error, FileNotFoundError):
            raise lost(f"{what}: {absent}") from error
        if isinstance(error, DefaultCredentialsError):
            raise StorageError(f"{what}: no credentials; run `gcloud auth application-default login`") from error
        if isinstance(error, HttpError) and error.code in set(HTTPStatus):
            reason = f"the server says {error.code} {HTTPStatus(error.code).phrase}"
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, network) or (isinstance(error, HttpError) and not is_retriable(error)):
            raise StorageError(f"{what}: {reason}") from error
        if wait is None:
            raise (lost if isinstance(error, _Damaged) else StorageError)(
                f"{what}, in {len(WAITS) + 1} tries: {reason}; run it again once that is mended, what is finished stays"
            ) from error
        time.sleep(random.uniform(0.5, 1) * wait)


def _bucket() -> Any:
    return _connected(os.getpid())  # a connection does not outlive a fork


@cache
def _connected(process: int) -> Any:
    """gcsfs, without retries of its own: six a request inside ours would multiply."""
    there = emulator()
    import aiohttp
    import gcsfs

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what failed at last is said once, by who wanted it
    plain = gcsfs.core.GCSFileSystem

    class Once(plain):
        _request = plain._request.__wrapped__
        _get_file_request = plain._get_file_request.__wrapped__
        _get_file_concurrent = plain._get_file_concurrent.__wrapped__

    return Once(
        token="anon" if there else None,
        endpoint_url=there,
        use_listings_cache=False,
        requests_timeout=aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE),
    )


def _describe(uri: str) -> Object:
    bucket, name = parts(uri)
    return _object(bucket, _bucket().call("GET", "b/{}/o/{}", bucket, name, json_out=True))


def _object(bucket: str, item: dict[str, Any]) -> Object:
    changed = datetime.fromisoformat(item["updated"])
    return Object(f"gs://{bucket}/{item['name']}", int(item["size"]), item["crc32c"], int(changed.timestamp() * 1e9))


def _crc32c(path: str | Path) -> str:
    import google_crc32c

    found = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return base64.b64encode(found.digest()).decode()
