"""Where arrays lie on many devices: one mesh ("data", "fsdp"), batches over both axes, states over "fsdp" alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ldmscale.errors import UserError

AXES = ("data", "fsdp")
# Smaller arrays (256 KiB as float32) stay whole: to gather them costs more than they take.
LEAST_ELEMENTS = 2**16


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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples (the first dimension) over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


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
