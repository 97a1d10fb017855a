"""Captioned images in tar shards, as img2dataset and webdataset write them, read where they lie, never unpacked.

A sample is the files of one tar that share a name up to the first dot: an image beside ``.txt`` (a caption a line) or
``.json`` (:func:`ldmscale.data.folder.captions_in`). Format: https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache, partial
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ldmscale.data.coco import THREADS
from ldmscale.data.folder import SUFFIXES, captions_in, parsed
from ldmscale.data.images import UnreadableImage, fit_image, open_image
from ldmscale.data.source import Example, Tally, Unusable, tidy
from ldmscale.errors import UserError
from ldmscale.provenance import read_json, write_checked

DAMAGED, NO_CAPTION, NO_IMAGE, TWICE = "damaged tar", "image without captions", "captions without image", "listed twice"
UNREADABLE, NO_TEXT = "unreadable image", "unreadable or blank captions"
# Candidates for tuning and heldout for each that is wanted, in case some cannot be read.
SPARE, LEAST_SPARE = 2, 64


class TarSource:
    """A source (:class:`ldmscale.data.source.Source`) of the samples in the ``.tar`` files of the folder ``shards``.

    ``index``: a folder for a list of what each tar holds and where, so that it is read through once; ``workers``
    processes make these lists. Tuning and heldout are the samples whose keys hash lowest under the seed, whatever the
    order of the tars, and are decoded beforehand; training is all others in the order of the tars, decoded when asked
    for. on_error: bad samples are a UserError (``refuse``), or counted and left out (``skip``).
    """

    def __init__(
        self,
        shards: str | Path,
        image_size: int,
        fit: str,
        heldout: int,
        tuning: int,
        on_error: str,
        seed: int,
        index: str | Path,
        workers: int = 1,
    ):
        self.folder, self.image_size, self.fit, self.on_error, self.seed = Path(shards), image_size, fit, on_error, seed
        self._tars = sorted(self.folder.glob("*.tar"))
        if not self._tars:
            raise UserError(f"{shards} holds no .tar files")
        self._index, self._wanted = Path(index), {"heldout": heldout, "tuning": tuning}
        self._list = lru_cache(maxsize=4)(partial(_list, self._index))
        candidates = self._survey(workers)
        # Drawn from all tars in no order: looked up tar by tar, and kept.
        self._places = {number: self._place(number) for number in np.sort(candidates).tolist()}
        if self._tally.counts and on_error == "refuse":
            raise UserError(f"{self._tally.sentence()}. Mend them, or set on_error to skip to leave them out")
        self._splits = self._choose(candidates)
        chosen = np.sort(np.concatenate([np.array(self._splits[name], np.int64) for name in self._wanted]))
        self._before = chosen - np.arange(len(chosen))
        self._train = int(self._ends[-1]) - len(chosen)
        if self._train < 1 or any(len(self._splits[name]) < count for name, count in self._wanted.items()):
            raise UserError(
                f"{self._tally.sentence()}: too few for {heldout} held-out and {tuning} tuning images and at least one "
                "for training"
            )

    def size(self, split: str) -> int:
        """Number of samples in ``split``."""
        return self._train if split == "train" else len(self._splits[split])

    def example(self, split: str, index: int) -> Example:
        """Sample ``index``, keyed by its tar and name. Raises Unusable, or UserError where on_error is ``refuse``."""
        if split == "train":
            number = index + int(np.searchsorted(self._before, index, side="right"))
        else:
            number = self._splits[split][index]
        try:
            return self._decode(number)
        except Unusable as found:
            if self.on_error == "skip":
                raise
            raise UserError(f"{found.name} in {self.folder}: {found.kind} ({found.why})") from None

    def check(self) -> Tally:
        """What the tars hold, and what of it is no sample; the images of ``train`` have not been decoded."""
        return self._tally

    def _survey(self, workers: int) -> np.ndarray:
        """Looks through all tars -> numbers of the samples that come first by their hash."""
        most = SPARE * sum(self._wanted.values()) + LEAST_SPARE
        self._tally, counts, total = Tally(), [], 0
        hashes, numbers = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        look = partial(_surveyed, self._index, self.seed)
        with ProcessPoolExecutor(min(workers, len(self._tars)), get_context("fork")) as pool:
            for found, skipped in pool.map(look, self._tars, chunksize=4):
                hashes = np.concatenate([hashes, found])
                numbers = np.concatenate([numbers, total + np.arange(len(found))])
                counts.append(len(found))
                total += len(found)
                self._tally.merge(*skipped)
                if len(hashes) > 2 * most:
                    lowest = np.argpartition(hashes, most)[:most]
                    hashes, numbers = hashes[lowest], numbers[lowest]
        self._ends = np.cumsum(counts)
        self._tally.title = f"{self.folder}: {total} samples in {len(counts)} tars"
        return numbers[np.argsort(hashes)][:most]

    def _choose(self, candidates: np.ndarray) -> dict[str, list[int]]:
        """The first candidates that can be read, shared out."""
        splits: dict[str, list[int]] = {name: [] for name in self._wanted}
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            for start in range(0, len(candidates), 256):
                group = candidates[start : start + 256].tolist()
                for number, usable in zip(group, pool.map(self._usable, group), strict=True):
                    wants = next((n for n, count in self._wanted.items() if len(splits[n]) < count), None)
                    if wants is None:
                        return splits
                    if usable:
                        splits[wants].append(number)
        return splits

    def _usable(self, number: int) -> bool:
        try:
            self._decode(number)
        except Unusable:
            return False
        return True

    def _place(self, number: int) -> tuple[int, list]:
        """The number of a sample's tar, and what the tar's list says of the sample."""
        tar = int(np.searchsorted(self._ends, number, side="right"))
        return tar, self._list(self._tars[tar])["samples"][number - (int(self._ends[tar - 1]) if tar else 0)]

    def _decode(self, number: int) -> Example:
        tar, (key, image, text, kind) = self._places.get(number) or self._place(number)
        name = f"{self._tars[tar].name}/{key}"
        with open(self._tars[tar], "rb") as file:
            pixels, written = (_part(file, *place) for place in (image, text))
        try:
            content = written.decode("utf-8-sig")
            lines = content.splitlines() if kind == "txt" else captions_in(parsed(content))
            captions = tuple(filter(None, map(tidy, lines)))
            if not captions:
                raise ValueError("no text")
        except ValueError as error:
            raise Unusable(NO_TEXT, name, str(error)) from None
        try:
            return Example(fit_image(open_image(io.BytesIO(pixels)), self.image_size, self.fit), captions, name)
        except UnreadableImage as error:
            # Without the buffer's address, which PIL names: the same data is to be the same bytes.
            raise Unusable(UNREADABLE, name, str(error).partition(" <_io")[0]) from None


def _part(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _surveyed(index: Path, seed: int, path: Path) -> tuple[np.ndarray, Any]:
    """Hashes uint64 of a tar's samples under the seed, and what was left out."""
    found = _list(index, path)
    # A name need not be UTF-8.
    keys = (f"{seed}/{path.name}/{sample[0]}".encode(errors="surrogatepass") for sample in found["samples"])
    hashes = [int.from_bytes(blake2b(key, digest_size=8).digest()) for key in keys]
    return np.array(hashes, np.uint64), found["skipped"]


def _list(index: Path, path: Path) -> dict[str, Any]:
    """What a tar holds: read through once, and again when the file is another."""
    if not path.is_file():
        return {"samples": [], "skipped": [{DAMAGED: 1}, {DAMAGED: [f"{path.name} (no file, or a link to none)"]}]}
    about, cached = os.stat(path), index / f"{path.name}.json"
    state = [about.st_size, about.st_mtime_ns]
    try:
        if (found := read_json(cached)).get("state") == state:
            return found
    except UserError:
        pass
    samples, skipped = _samples(path, about.st_size)
    found = {"state": state, "samples": samples, "skipped": [skipped.counts, skipped.names]}
    write_checked(cached, found)
    return found


def _samples(path: Path, length: int) -> tuple[list[tuple], Tally]:
    """(key, (offset, size) of the image, of the captions, txt or json) of every sample of a tar, in its order."""
    files: dict[str, dict[str, tuple[int, int]]] = {}
    skipped = Tally()
    try:
        for key, suffix, place in _members(path):
            if sum(place) > length:
                raise tarfile.ReadError("unexpected end of data")
            if suffix in files.setdefault(key, {}):
                skipped.add(TWICE, f"{path.name}/{key}.{suffix}")
            files[key].setdefault(suffix, place)
    except Exception as error:  # tarfile raises almost anything on damaged headers
        skipped.add(DAMAGED, path.name, f"{error}; of what comes before it {len(files)} samples are used")
    samples = []
    for key, parts in files.items():
        image = next((parts[suffix[1:]] for suffix in SUFFIXES if suffix[1:] in parts), None)
        kind = next((kind for kind in ("txt", "json") if kind in parts), None)
        if image and kind:
            samples.append((key, image, parts[kind], kind))
        elif image or kind:
            skipped.add(NO_CAPTION if image else NO_IMAGE, f"{path.name}/{key}")
    return samples, skipped


def _members(path: Path) -> Iterator[tuple[str, str, tuple[int, int]]]:
    with tarfile.open(path, "r:") as tar:
        before = -1
        while (member := tar.next()) is not None:
            tar.members = []  # it would keep them all
            if tar.offset <= before:
                raise tarfile.ReadError("a negative size")  # which would lead back to where it came from, for ever
            before = tar.offset
            if member.isreg() and not member.issparse():
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                yield f"{folder}/{key}" if folder else key, suffix.lower(), (member.offset_data, member.size)
        # tarfile takes a header that it cannot read for the end, which is a block of zeros.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"neither a file nor the end of the tar at byte {tar.offset}")
