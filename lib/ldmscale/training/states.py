"""The newest state of a training, from which it goes on: whole or absent, whatever devices it was saved on.

On one device it is one safetensors file, for that is cheap: to save 400 tensors of 8 MB together takes 0.03 CPU-seconds
and to load them 0.01, where Orbax takes 0.55 and 0.21, and 0.2 to 0.4 to be imported. On several devices or hosts, and
where there is a bucket, Orbax writes while training goes on, every host what its devices hold. Either may go on from
what the other has left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import SingleDeviceSharding

from ldmscale import bucket, hosts, storage
from ldmscale.errors import UserError
from ldmscale.storage import StorageError
from ldmscale.training.checkpoint import load_tree, named, read_metadata, save_tree
from ldmscale.training.sharding import place

State = TypeVar("State")
FILE, FOLDER = "state.safetensors", "states"
# What TensorStore says when it has tried for long enough, or may not read.
UNREACHABLE = (
    "retry attempts failed",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
)


class States:
    """The states of the training in ``folder`` that is made under ``digest``; all hosts call the same in one order.

    ``state.safetensors`` or, of Orbax, ``states/<step>`` in ``folder`` or at its place in the bucket. What carries
    another digest, is damaged or was not finished is as good as absent. A state is a tree of arrays.
    """

    def __init__(self, folder: str | Path, digest: str):
        self._digest = digest
        self._file = Path(folder) / FILE
        self._bucket = storage.uri(folder)
        self._place = f"{self._bucket}/{FOLDER}" if self._bucket else os.path.abspath(Path(folder) / FOLDER)
        self._opened = False

    def latest(self, like: State) -> State | None:
        """The newest state, or None; ``like``: a tree of its shapes, whose ``sharding``, if any, says where arrays go.

        Arrays without a sharding come as numpy's, or on the first device.

        Raises:
            UserError: the bucket or the disk cannot be read.
        """
        in_file = hosts.agreed(self._file_step())
        if self._bucket or hosts.agreed(os.path.isdir(self._place)):
            with self._explained("read"):
                steps = sorted(found.step for found in self._orbax.checkpoints)
            for step in reversed([step for step in steps if step > in_file]):
                if (state := self._load(step, like)) is not None:
                    return state
        return self._load_file(like) if in_file >= 0 else None

    def save(self, step: int, state: Any) -> None:
        """Save ``state``, which has done ``step`` steps; the one before it goes when this one is whole.

        Several devices' arrays may be changed at once: what is still being written has been copied.

        Raises:
            UserError: this state, or the one before it, cannot be written.
        """
        arrays = dict(named(state))
        if not (self._bucket or any(len(x.sharding.device_set) > 1 for x in arrays.values() if hasattr(x, "sharding"))):
            save_tree(self._file, state, digest=self._digest, step=step)
            shutil.rmtree(self._place, ignore_errors=True)  # of a run on more devices
            return
        made = {"digest": self._digest, "checksum": _checksum(arrays)}
        with self._explained("written"):
            for old in self._orbax.checkpoints:
                if old.step >= step:  # of a run that this one does not go on from
                    self._orbax.delete(old.step)
            self._orbax.save_async(step, arrays, force=True, custom_metadata=made)

    def wait(self) -> None:
        """Until the last state is whole. Raises UserError: it cannot be written."""
        if self._opened:
            with self._explained("written"):
                self._orbax.wait()
            if hosts.writes() and self._orbax.checkpoints:
                storage.remove(self._file)  # of a run on one device

    def close(self) -> None:
        """:meth:`wait`, and let go of what writes."""
        self.wait()
        if self._opened:
            self._orbax.close()

    def _file_step(self) -> int:
        """How far the file is, -1 where it cannot be used."""
        try:
            made = read_metadata(self._file)
        except StorageError:  # no word on the state
            raise
        except UserError:
            return -1
        return made["step"] if made.get("digest") == self._digest and "step" in made else -1

    def _load_file(self, like: State) -> State | None:
        try:
            state, whole = load_tree(self._file, like)[0], True
        except StorageError:
            raise
        except UserError:
            whole = False
        if not hosts.everywhere(whole):
            return None
        if any(getattr(x, "sharding", None) is None for x in jax.tree.leaves(like)):
            return state
        return place(state, jax.tree.map(lambda x: x.sharding, like))

    def _load(self, step: int, like: State) -> State | None:
        """Orbax's state of ``step``, if it is whole and of this digest."""
        first = SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first)
            for name, x in named(like)
        }
        arrays: dict[str, jax.Array] = {}
        try:
            made = self._orbax.metadata(step).custom_metadata or {}
            if made.get("digest") == self._digest:
                arrays = self._orbax.load(step, wanted)
        except Exception as error:  # TensorStore and Orbax raise all kinds for a damaged one
            if _unreachable(error):
                with self._explained("read"):
                    raise
        # All hosts or none: what follows they do together.
        if not hosts.everywhere(bool(arrays)) or _checksum(arrays) != made["checksum"]:
            return None
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name, _ in named(like)])

    @cached_property
    def _orbax(self) -> Any:
        if self._bucket:
            bucket.emulator()
        from orbax.checkpoint import v1 as ocp
        from orbax.checkpoint._src.serialization import tensorstore_utils

        # TensorStore's own 32 tries would hold the machines for a quarter of an hour where a bucket is out of reach.
        first, *_, last = bucket.WAITS
        tries = {"max_retries": len(bucket.WAITS), "initial_delay": f"{first}s", "max_delay": f"{last}s"}
        for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
            context["gcs_request_retries"] = tries
        newest = ocp.training.preservation_policies.LatestN(1)
        opened = ocp.training.Checkpointer(self._place, preservation_policy=newest, cleanup_tmp_directories=True)
        self._opened = True
        return opened

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            raise UserError(
                f"states in {self._place} could not be {what} ({type(error).__name__}: {said}): see that it exists and "
                "has room, and that it may be written, then run it again (it goes on from the last whole one)"
            ) from error


def _unreachable(error: Exception) -> bool:
    """Whether it is not what was read that is at fault, but the way to it: such a state is not to be begun anew."""
    way = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    return way or type(error).__module__.startswith(("gcsfs", "aiohttp")) or any(s in str(error) for s in UNREACHABLE)


def _checksum(arrays: dict[str, jax.Array]) -> int:
    """32 bits of arrays on devices, the same on any mesh: sums of integers, which do not round, where they lie."""
    found = 0
    for total in [_weighed(arrays[name]) for name in sorted(arrays)]:
        found = (found * 1000003 + int(total)) % 2**32
    return found


@jax.jit
def _weighed(array: jax.Array) -> jax.Array:
    """The sum, modulo 2^32, of an array's elements as integers, each times an odd number of its place."""
    bits = lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(array.shape):
        place = place * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
