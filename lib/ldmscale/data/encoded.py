"""Images and captions after the frozen encoders, as arrays on disk: what training and sampling read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldmscale.errors import UserError
from ldmscale.files import seal, sealed_size
from ldmscale.provenance import atomic_path, read_manifest, write_manifest
from ldmscale.storage import StorageError, fetch, glob, push, remove

PROMPT_SPLITS = ("gallery", "tuning", "heldout")
# Each split's images count from an offset of their own, so that a longer gallery leaves the other splits' noise alone.
_SPLITS = ("gallery", "tuning", "heldout", "interpolation", "superres", "dreambooth", "class", "prior", "validation")
OFFSETS = {split: 1_000_000 * i for i, split in enumerate(_SPLITS)}

# So many files stay mapped. Each keeps a file descriptor, of which a process often has 1024; of more files than this
# each row is read at its place: 20 us for 8 rows of a file, where a map that is open takes 7 and opening it 90.
MAPPED = 64


def save_array(path: str | Path, array: np.ndarray) -> None:
    """Write ``array`` as .npy with a checksum behind it, whole or not at all; into the bucket too where the study has
    one. Raises UserError, and writes nothing, where a value is not finite."""
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(np.atleast_1d(array)))[0, 0])
        raise UserError(
            f"{path} would hold values that are not finite (first in row {row}): the network that makes them, or what "
            f"it is given, is broken, or they are too large for {array.dtype}"
        )
    with atomic_path(path) as temporary:
        np.save(temporary, array)
        seal(temporary)
    push(path)


def load_array(path: str | Path) -> np.ndarray:
    """Map an array that :func:`save_array` wrote, whose bytes are all read once to check them; ``UserError`` naming the
    file if it is missing or damaged."""
    try:
        size = sealed_size(file := fetch(path))  # before its header is parsed, which may be damaged in any way
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.offset + array.nbytes != size:
            raise ValueError("it is longer than its array")
        return array
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete the manifest beside it and run snakemake again"
        ) from None


class Rows:
    """The concatenation of .npy files of ``counts`` rows, indexed by a slice or an integer array as numpy's first axis.

    Files are opened when their first row is asked for; several threads may ask. Raises UserError naming a file that is
    missing, cut short, or of another shape than the first.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
        self._paths = list(paths)
        self._ends = np.cumsum(counts, dtype=np.int64)
        first = self._opened(0)
        self.shape, self.dtype = (int(self._ends[-1]), *first.shape[1:]), first.dtype
        self._maps: dict[int, np.ndarray] = {}
        self._offsets: dict[int, int] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        elif len(rows) and not (0 <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of an array of {len(self)}")
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        for places in np.split(order, cuts) if len(rows) else ():
            shard = int(shards[places[0]])
            local = rows[places] - (self._ends[shard - 1] if shard else 0)
            if len(self._paths) <= MAPPED:
                found[places] = self._mapped(shard)[local]
            else:
                self._read(shard, local, found, places)
        return found

    def _mapped(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            self._maps[shard] = self._checked(shard)
        return self._maps[shard]

    def _opened(self, shard: int) -> np.memmap:
        try:
            return load_array(self._paths[shard])
        except StorageError:
            raise
        except UserError:
            raise self._damaged(shard) from None

    def _checked(self, shard: int) -> np.memmap:
        array = self._opened(shard)
        count = int(self._ends[shard] - (self._ends[shard - 1] if shard else 0))
        if array.shape != (count, *self.shape[1:]) or array.dtype != self.dtype or not array.flags.c_contiguous:
            raise self._damaged(shard)
        return array

    def _damaged(self, shard: int) -> UserError:
        return UserError(
            f"{self._paths[shard]} is missing, cut short or of another shape than its neighbours: run "
            "`snakemake --forcerun latents`, which makes again what is not whole"
        )

    def _read(self, shard: int, rows: np.ndarray, found: np.ndarray, places: np.ndarray) -> None:
        if shard not in self._offsets:
            self._offsets[shard] = self._checked(shard).offset
        offset, stride = self._offsets[shard], found.itemsize * found[0].size
        with open(fetch(self._paths[shard]), "rb", buffering=0) as file:
            for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                if os.preadv(file.fileno(), [found[place : place + 1]], offset + row * stride) != stride:
                    raise self._damaged(shard)


@dataclass(frozen=True)
class Latents:
    """What the U-Nets train on, encoded once.

    ``mean``, ``std`` [N,h,w,C] are the moments of each image's latent; ``states`` [captions,L,D] the text tower's;
    captions of image i are rows ``first[i]`` up to ``first[i + 1]`` (int64 [N+1]); ``null`` [L,D] is the empty caption;
    ``scale`` brings latents to unit variance (arXiv 2112.10752, appendix G). Of these the first three may be more than
    memory holds: they lie in shards, a folder ``00000`` and so on for each shard of the records, and are read by rows.
    float32, or ``data.encoded``'s float16.
    """

    mean: np.ndarray | Rows
    std: np.ndarray | Rows
    states: np.ndarray | Rows
    first: np.ndarray
    null: np.ndarray
    scale: float

    @classmethod
    def load(cls, folder: str | Path, scale: float) -> Latents:
        """What :func:`save_shard` and :func:`save_index` wrote. Raises UserError naming a file that is damaged."""
        folder = Path(folder)
        index = load_array(folder / "shards.npy")
        used = np.flatnonzero(index[:, 0])
        rows = {
            name: Rows([shard_folder(folder, n) / f"{name}.npy" for n in used], index[used, column])
            for name, column in (("mean", 0), ("std", 0), ("states", 1))
        }
        return cls(**rows, first=load_array(folder / "first.npy"), null=load_array(folder / "null.npy"), scale=scale)


def shard_folder(folder: Path, number: int) -> Path:
    """Where shard ``number`` of the latents in ``folder`` lies."""
    return folder / f"{number:05d}"


def save_shard(
    folder: Path, number: int, digest: str, mean: np.ndarray, std: np.ndarray, states: np.ndarray, captions: np.ndarray
) -> None:
    """Write one shard: moments [n,h,w,C], states [m,L,D] and how many ``captions`` [n] each image has, then a manifest
    by which :func:`has_shard` knows that it is whole."""
    shard = shard_folder(folder, number)
    arrays = {"mean": mean, "std": std, "states": states, "captions": captions.astype(np.int64)}
    for name, array in arrays.items():
        save_array(shard / f"{name}.npy", array)
    write_manifest(shard / "shard.json", "latents", digest, counts=[len(mean), len(states)])


def has_shard(folder: Path, number: int, digest: str) -> bool:
    """Whether shard ``number`` is there, made under ``digest``, and none of its files cut short."""
    shard = shard_folder(folder, number)
    try:
        counts = read_manifest(shard / "shard.json", "latents", digest)["counts"]
        sizes = [len(load_array(shard / f"{name}.npy")) for name in ("mean", "std", "states", "captions")]
    except UserError:
        return False
    return sizes == [counts[0], counts[0], counts[1], counts[0]]


def save_index(folder: Path, shards: int, digest: str) -> None:
    """Gather what is in the ``shards`` into ``shards.npy`` (int64 [shards,2]: images, captions) and ``first.npy``, and
    remove the shards of a longer earlier run. Raises UserError for a shard that is missing or of another digest."""
    made = [read_manifest(shard_folder(folder, n) / "shard.json", "latents", digest)["counts"] for n in range(shards)]
    captions = [load_array(shard_folder(folder, number) / "captions.npy") for number in range(shards)]
    save_array(folder / "shards.npy", np.array(made, np.int64))
    save_array(folder / "first.npy", np.concatenate([np.zeros(1, np.int64), *captions]).cumsum())
    for stale in folder.glob("[0-9][0-9][0-9][0-9][0-9]"):
        if int(stale.name) >= shards:
            for path in glob(stale, "*.npy"):
                remove(path)
            shutil.rmtree(stale)


@dataclass(frozen=True)
class Prompts:
    """Text states [N,L,D] and CLIP embeddings [N,E] of each split's prompts; ``null`` [L,D] is the empty caption.

    ``between`` [P,A,L,D] are the states on the way between the prompts of P pairs, ``ends`` [P,2,E] the embeddings of
    the two prompts of each; both are empty where the study interpolates nothing.
    """

    states: Mapping[str, np.ndarray]
    embeddings: Mapping[str, np.ndarray]
    null: np.ndarray
    between: np.ndarray
    ends: np.ndarray

    ARRAYS = ("null", "between", "ends")

    def save(self, folder: str | Path) -> None:
        for split in PROMPT_SPLITS:
            save_array(Path(folder) / f"{split}-states.npy", self.states[split])
            save_array(Path(folder) / f"{split}-embeddings.npy", self.embeddings[split])
        for name in self.ARRAYS:
            save_array(Path(folder) / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: str | Path) -> Prompts:
        read = {kind: {s: load_array(Path(folder) / f"{s}-{kind}.npy") for s in PROMPT_SPLITS}
                for kind in ("states", "embeddings")}  # fmt: skip
        return cls(**read, **{name: load_array(Path(folder) / f"{name}.npy") for name in cls.ARRAYS})

    def interpolated(self, noises: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """:meth:`drawn` for a cell of interpolation: every state of ``between`` with the same ``noises`` noises."""
        states = self.between.reshape(-1, *self.between.shape[2:])
        numbers = OFFSETS["interpolation"] + np.tile(np.arange(noises), len(states))
        return np.repeat(states, noises, axis=0), numbers, ["interpolation"] * len(numbers)

    def drawn(self, scored: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """States, image numbers and split of every image a cell draws: the gallery alone unless ``scored``."""
        splits = PROMPT_SPLITS if scored else PROMPT_SPLITS[:1]
        states = np.concatenate([self.states[s] for s in splits])
        numbers = np.concatenate([OFFSETS[s] + np.arange(len(self.states[s])) for s in splits])
        return states, numbers, [s for s in splits for _ in self.states[s]]
