"""Where arrays lie on many devices: one mesh ("data", "fsdp"), batches over both axes, states over "fsdp" alone.

The devices may be those of several hosts (:mod:`ldmscale.hosts`); every host then runs the same programs on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ldmscale.config.study import Study
from ldmscale.errors import UserError

AXES = ("data", "fsdp")
# Smaller arrays (256 KiB as float32) stay whole: to gather them costs more than they take.
LEAST_ELEMENTS = 2**16
# Bytes of a network of which each of a CPU's devices, who share one memory, does not get a copy. Its products are large
# enough to be divided among threads.
HEAVY = 2**28


@dataclass(frozen=True)
class Devices:
    """How a job uses its devices (the config's ``devices``); what it computes is the same up to rounding.

    fsdp: how many devices share one copy of the state. accumulate: microbatches a training step is cut into.
    remat: whether each block's activations are computed again for the gradient instead of kept.
    """

    fsdp: int = 1
    accumulate: int = 1
    remat: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], model: str) -> Devices:
        """How jobs of ``model`` use their devices in the study of ``config``."""
        return cls(**Study(config).devices(model))

    def mesh(self) -> Mesh | None:
        """All devices of the job, or None where there is one: nothing has to be placed then.

        Raises UserError where ``fsdp`` does not divide their number.
        """
        found = jax.devices()
        return None if len(found) == self.fsdp == 1 else device_mesh(found, self.fsdp)

    def microbatches(self, batch: int, mesh: Mesh | None) -> int:
        """Into how many a step's ``batch`` is cut: ``accumulate``, or where there are fewer, its examples a device.

        Raises UserError where the devices do not divide the batch, or ``accumulate`` the examples of each.
        """
        devices = 1 if mesh is None or batch < mesh.size else mesh.size
        if batch % devices:
            raise UserError(f"batch is {batch}: it must be a multiple of the number of devices, {devices}, or below it")
        each = batch // devices
        if each > self.accumulate and each % self.accumulate:
            raise UserError(
                f"devices.accumulate is {self.accumulate}: it must divide the examples of a device, {each} (batch "
                f"{batch} on {devices})"
            )
        return min(self.accumulate, each)


def device_mesh(devices: Sequence[jax.Device], fsdp: int = 1) -> Mesh:
    """``devices`` as a mesh whose axis "fsdp" is ``fsdp`` long; a ``fsdp`` of 1 is plain data parallelism.

    Raises:
        UserError: ``fsdp`` does not divide the number of devices.
    """
    if fsdp < 1 or len(devices) % fsdp:
        raise UserError(f"fsdp is {fsdp}: it must divide the number of devices, {len(devices)}")
    # Automatic axes: convolutions with sharded kernels are left to XLA.
    return jax.make_mesh((len(devices) // fsdp, fsdp), AXES, (AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, examples: int | None = None) -> NamedSharding:
    """Examples (the first dimension) over all devices; ``examples`` that are fewer than these, whole on each."""
    few = examples is not None and examples < mesh.size
    return replicated(mesh) if few else NamedSharding(mesh, PartitionSpec(AXES))


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every array (or ShapeDtypeStruct) of ``tree``: parameters, averages, moments.

    The largest dimension that the axis "fsdp" divides is cut over it (the last such, of equals); an array without one,
    or of under :data:`LEAST_ELEMENTS`, is whole on every device.
    """
    parts = mesh.shape["fsdp"]

    def place(array: Any) -> NamedSharding:
        divisible = [(size, axis) for axis, size in enumerate(array.shape) if size % parts == 0]
        if parts == 1 or not divisible or math.prod(array.shape) < LEAST_ELEMENTS:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * max(divisible)[1], "fsdp"))

    return jax.tree.map(place, tree)


def place(tree: Any, shardings: Any) -> Any:
    """``tree``'s arrays where ``shardings`` say; several hosts have the same, of which each sends its devices parts, or
    they lie there already."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(array, jax.Array) and array.sharding.is_equivalent_to(sharding, array.ndim):
            return array
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])

    return jax.tree.map(put, tree, shardings)


def place_as_state(tree: Any, mesh: Mesh) -> Any:
    """Parameters that are given, cut as a state's are."""
    return place(tree, state_shardings(tree, mesh))


def host_rows(sharding: NamedSharding, examples: int) -> slice:
    """Those of ``examples`` rows that this host's devices hold under ``sharding``: the least range with all of them."""
    held = [at[0].indices(examples) for at in sharding.addressable_devices_indices_map((examples,)).values()]
    return slice(min(first for first, *_ in held), max(last for _, last, _ in held))


def host_batches(task: Any, mesh: Mesh) -> Callable[[int], dict[str, jax.Array]]:
    """``read(step)``: the ``task``'s batch on all devices of ``mesh``, of which each host reads what its own hold."""
    examples = task.batch_size
    sharding = batch_sharding(mesh, examples)
    rows = host_rows(sharding, examples)

    def put(array: np.ndarray) -> jax.Array:
        def part(at: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = at[0].indices(examples)
            return array[first - rows.start : last - rows.start]

        return jax.make_array_from_callback((examples, *array.shape[1:]), sharding, part)

    return lambda step: {name: put(array) for name, array in task.batch(step, rows).items()}


def fetch(tree: Any) -> Any:
    """``tree``'s arrays whole, as numpy, on every host; one after the other, so that devices need hold but one."""

    def whole(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)

    return jax.tree.map(whole, tree)


def cpu_heavy(params: Any) -> bool:
    """Whether ``params`` (arrays or their shapes) are over :data:`HEAVY` and would be copied within one memory."""
    if jax.default_backend() != "cpu" or jax.process_count() > 1:
        return False
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) > HEAVY


class Kept:
    """The last parameters that were asked for, on the devices: sent there once, and not with every batch."""

    def __init__(self) -> None:
        self._last: tuple[Any, Mesh | None, Any] = (None, None, None)

    def __call__(self, params: Any, mesh: Mesh | None) -> Any:
        """``params`` cut as a state's on ``mesh``, or on the default device."""
        given, where, placed = self._last
        if given is not params or where != mesh:
            self.release()  # not both at once
            placed = jax.device_put(params) if mesh is None else place_as_state(params, mesh)
            self._last = (params, mesh, placed)
        return placed

    def release(self) -> None:
        """Let go of them."""
        self._last = (None, None, None)


def spread(program: Callable[..., Any], params: Any, rows: int, kept: Kept | None = None) -> Callable[..., Any]:
    """``program(params, *arrays)`` as a function of arrays of ``rows`` rows, of which each of this host's devices gets
    its part; where there is one, where they do not divide ``rows``, or where ``params`` are :func:`cpu_heavy`, the
    first gets all. ``kept`` may hold the parameters already."""
    devices = jax.local_devices()
    alone = len(devices) == 1 or rows % len(devices) > 0 or cpu_heavy(params)
    mesh = None if alone else device_mesh(devices)
    placed = (kept or Kept())(params, mesh)
    if mesh is None:
        return partial(program, placed)
    return lambda *arrays: program(placed, *jax.device_put(arrays, batch_sharding(mesh)))
