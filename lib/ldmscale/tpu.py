"""Compiling for TPUs that are not there: what a program would take of every device, from libtpu's compiler alone."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ldmscale.errors import UserError

if TYPE_CHECKING:
    from ldmscale.training.collectives import Traffic

EXTRA = "tpu"  # the optional dependency of pyproject.toml that brings libtpu
LIBRARY = "TPU_LIBRARY_PATH"  # where JAX looks for libtpu.so before it looks for the package
# Without a TPU's own environment libtpu asks for the first three at length on standard error; a compiler needs none of
# them, nor a TPU to itself: several may compile at once, beside a job that runs.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_UNITS = {unit: 2 ** (10 * power) for power, unit in enumerate(("B", "K", "M", "G", "T", "P"))}
_SIZE = r"([\d.]+)([BKMGTP])"
# What the compiler says of a program that is too large, before and after it has laid the program out.
_TOO_LARGE = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)


@dataclass(frozen=True)
class Footprint:
    """What a compiled program takes of each device, in bytes.

    ``arguments``, ``outputs`` (less what reuses the arguments' memory), ``temporaries``, ``program`` and
    ``collectives`` are None where the compiler has refused the program as too large; ``total`` is what it would have
    needed then. ``available`` is the memory of a device that the compiler may use. ``seconds`` is the compiler's
    estimate of one run, None where it gives none; ``compile_seconds`` is what compiling took. ``collectives`` is what
    one run sends between devices, by kind (:mod:`ldmscale.training.collectives`).
    """

    arguments: int | None
    outputs: int | None
    temporaries: int | None
    program: int | None
    total: int
    available: int
    seconds: float | None
    compile_seconds: float
    collectives: dict[str, Traffic] | None

    @property
    def fits(self) -> bool:
        return self.arguments is not None and self.total <= self.available


def require() -> None:
    """Make ready for :func:`topology`; before JAX is imported it also keeps JAX off a TPU that is there.

    Raises:
        UserError: libtpu is not installed.
    """
    if not installed():
        raise UserError(
            "compiling for a TPU needs libtpu, which is not installed: add it to this environment with "
            f"`pip install 'ldmscale[{EXTRA}]'` (in the source folder: `pip install -e '.[{EXTRA}]'`), about 200 MB "
            f"to download, or set {LIBRARY} to a libtpu.so"
        )
    for name, value in {**_QUIET, "JAX_PLATFORMS": "cpu"}.items():
        os.environ.setdefault(name, value)


def installed() -> bool:
    """Whether libtpu is there, as a package or under ``TPU_LIBRARY_PATH``."""
    return os.path.isfile(os.environ.get(LIBRARY, "")) or importlib.util.find_spec("libtpu") is not None


def topology(name: str) -> Sequence[Any]:
    """The devices of a slice such as ``v5e:4x4`` (16 chips) or ``v5p:2x2x1``, to compile for.

    A device is a chip, but for v2, v3 and TPU7x, whose chips are two devices each.

    Raises:
        UserError: libtpu is not installed, or knows no such slice.
    """
    require()
    from jax.errors import JaxRuntimeError
    from jax.experimental.topologies import get_topology_desc

    version, _, layout = name.partition(":")
    options: dict[str, Any] = {}
    if re.fullmatch("1(x1)*", layout):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if version == "v4":
        options["chip_config_name"] = "megacore"  # as v4 runs: a chip's two cores are one device
    try:
        return get_topology_desc(name, platform="tpu", **options).devices
    except JaxRuntimeError as error:
        raise UserError(
            f"topology '{name}' is none that libtpu knows ({_line(error)}): write the version and the chips a side, "
            "as in v5e:2x2, v5e:4x4, v5p:2x2x1 or v6e:8x8"
        ) from None


def available_memory(devices: Sequence[Any]) -> int:
    """Bytes of memory a device that programs may use, asked of the compiler with a program that no TPU could hold."""
    import jax
    import jax.numpy as jnp
    from jax.errors import JaxRuntimeError
    from jax.sharding import SingleDeviceSharding

    huge = jax.ShapeDtypeStruct((2**50,), jnp.float32, sharding=SingleDeviceSharding(devices[0]))
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except JaxRuntimeError as error:
        sizes = _sizes(error)
        if sizes:
            return sizes[1]
        raise
    raise RuntimeError("libtpu compiled a program of four pebibytes: how much memory a device has cannot be told")


def footprint(lower: Callable[[], Any], available: int, quick: bool = False) -> Footprint:
    """Compile ``lower()``, a ``jax.stages.Lowered`` for a :func:`topology`'s devices; nothing is run or allocated.

    ``available`` is :func:`available_memory`'s. ``quick``: with the least effort, in half to a third of the time; the
    program is another one than runs. A program that is too large for a device is a Footprint that does not
    fit; whatever else the compiler has against it is raised.
    """
    from jax.errors import JaxRuntimeError

    from ldmscale.models.layers import traced_for
    from ldmscale.training.collectives import collectives

    began = time.monotonic()
    with traced_for("tpu"):
        lowered = lower()
    try:
        with _least_effort() if quick else nullcontext():
            compiled = lowered.compile()
    except JaxRuntimeError as error:
        sizes = _sizes(error)
        if sizes is None:
            raise
        return Footprint(*[None] * 4, sizes[0], available, None, time.monotonic() - began, None)
    took = time.monotonic() - began
    memory = compiled.memory_analysis()
    parts = (
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
    )
    # An estimate of a whole program that XLA could not make comes as a number below zero.
    seconds = (compiled.cost_analysis() or {}).get("optimal_seconds", math.nan)
    sent = collectives(compiled.as_text())
    return Footprint(*parts, sum(parts), available, seconds if seconds > 0 else None, took, sent)


@contextmanager
def _least_effort() -> Iterator[None]:
    import jax

    usual = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    try:
        yield
    finally:
        jax.config.update("jax_exec_time_optimization_effort", usual)


def _sizes(error: Exception) -> tuple[int, int] | None:
    """(needed, available) bytes where ``error`` says that a program is too large for a device."""
    for pattern in _TOO_LARGE:
        found = pattern.search(str(error))
        if found:
            needed, unit, there, its_unit = found.groups()
            return round(float(needed) * _UNITS[unit]), round(float(there) * _UNITS[its_unit])
    return None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
