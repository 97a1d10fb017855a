"""Process settings that have to stand before JAX is imported: compiler flags, compile cache, threads."""

from __future__ import annotations

import ctypes
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldmscale.files import seal, sealed_size

# Flags are set for this release of jaxlib alone: others may not know them, and XLA aborts on a flag it does not know.
TUNED_JAXLIB = "0.10.2"
FLAGS = (
    # YNNPACK fusions return wrong sums for some CPU reductions (jax-ml/jax#39103) and run convolution gradients two to
    # three times slower than XLA's own kernels. An empty value switches them off.
    "--xla_cpu_experimental_ynn_fusion_type=",
    # The newer emitters of CPU loops leave a training process's heap in pieces (docs/speed.md); what takes them all the
    # same says forward_options.
    "--xla_cpu_use_fusion_emitters=false",
)
# On a GPU, where the same flags rule, what costs compilation here and gains nothing may gain.
CPU_ONLY_FLAGS = (
    # LLVM's second and third level: half as much compilation again.
    "--xla_backend_optimization_level=1",
    # LLVM's strength reduction of loops is a quarter of a training step's compilation, unrolling what is vectorised
    # and scheduling instructions another twentieth.
    "--xla_backend_extra_options=-disable-lsr,-unroll-threshold=0,-enable-misched=false",
)
# malloc.h's M_MMAP_MAX, nothing in mappings of its own; M_TRIM_THRESHOLD, the heap does not shrink; M_TOP_PAD, nor do
# the heaps of 64 MB that threads have go away as a whole, as they otherwise do as soon as they are empty. Threads have
# heaps of their own: in a common one each product's buffers would be looked for between what compilation leaves.
MALLOC = ((-4, 0), (-1, -1), (-2, 64 << 20))
# As many parts as there are threads to compile them side by side: the 32 that XLA cuts a program into cost a job of one
# thread, as most are, a quarter of the compilation. A flag is also part of a program's name in the compile cache, so a
# job finds those that were compiled for its own number of threads: loops are divided among them when they are compiled.
PARTS = "--xla_cpu_parallel_codegen_split_count={}"
# Batches are cut over devices: two devices of a thread each make images 1.1 to 1.5 times as fast as one of two, which
# divides each product and loop among them.
DEVICES = "--xla_force_host_platform_device_count={}"


def prepare() -> None:
    """Set ``XLA_FLAGS`` for the installed jaxlib and BLAS to one thread; leaves what the user has set alone."""
    # Threads of BLAS fight with the other jobs of the study over the same cores; matrices here are small.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _set_flags(*FLAGS, *(() if _gpu_packages() else CPU_ONLY_FLAGS))


def keep_memory() -> None:
    """Have glibc keep what is freed, for a process that trains (before the first computation).

    A program takes its megabytes anew at each call: where they come from the system and go back to it, a quarter of a
    training step are page faults.
    """
    if not _gpu_packages():
        with suppress(AttributeError, OSError, TypeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            for setting in MALLOC:
                mallopt(*setting)


def _gpu_packages() -> bool:
    return find_spec("jax_plugins") is not None  # where they install themselves


def _set_flags(*ours: str) -> None:
    """Add to ``XLA_FLAGS`` those that the user has not set, for the release that is known to know them."""
    if version("jaxlib") == TUNED_JAXLIB:
        flags = os.environ.get("XLA_FLAGS", "")
        missing = [flag for flag in ours if flag.partition("=")[0] not in flags]
        os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()


def use_compile_cache(folder: str) -> None:
    """Keep compiled programs in ``folder``, shared by all jobs: one compilation per network, not per process.

    JAX reads the variables when it is imported, so a job that needs no JAX is spared its start.
    """
    check_cache(Path(folder))
    settings = {
        "jax_compilation_cache_dir": os.path.abspath(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if not _gpu_packages():
        # XLA's own caches are for GPUs. JAX names their folder in a program's options, and so in its key: a study that
        # is moved or copied would compile everything anew.
        settings["jax_persistent_cache_enable_xla_caches"] = "none"
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})
    if "jax" in sys.modules:
        for name, value in settings.items():
            sys.modules["jax"].config.update(name, value)


def forward_options() -> dict[str, bool] | None:
    """Compiler options, beside the flags, of a program without gradients: with XLA's newer emitters of CPU loops
    sampling takes 0.6 to 0.8 of the time and AdamW half of it, for the older ones do not vectorise what they write
    where they read it."""
    import jax

    tuned = version("jaxlib") == TUNED_JAXLIB and jax.default_backend() == "cpu"
    return {"xla_cpu_use_fusion_emitters": True} if tuned else None


ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how its files begin; JAX takes it where it is installed
ABANDONED = 600.0  # seconds after which nobody writes at a file any more


def check_cache(folder: Path) -> None:
    """Remove damaged programs from a compile cache, and seal (:mod:`ldmscale.files`) those that are found whole.

    JAX knows a damaged one by zlib's Adler-32 alone, which some flipped bits of repetitive data get past; and one that
    it knows, say half-written as a job was killed, it neither uses nor replaces. It passes over bytes at the end.
    """
    for path in folder.glob("*-cache"):
        with suppress(OSError):  # a job beside this one has removed it, or it may not be written
            try:
                if sealed_size(path) < path.stat().st_size:
                    continue
                content = path.read_bytes()
                if content.startswith(ZSTANDARD):
                    continue
                zlib.decompress(content)
                seal(path)
            except ValueError:
                path.unlink()
            except zlib.error:
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()


def use_threads(count: int, devices: int = 1) -> None:
    """Hold this process's CPU programs to ``count`` threads (before the first computation), which show themselves to
    JAX as so many ``devices``.

    The study's networks are small: two processes of one thread each finish far more than one process of two.
    """
    os.environ["NPROC"] = str(count)  # what XLA's CPU client sizes its thread pool by
    _set_flags(PARTS.format(count), *([DEVICES.format(devices)] if devices > 1 else ()))


def in_threads(work: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Call ``work`` with each of ``items``, on as many threads as the process has: for NumPy's work of milliseconds and
    more, which leaves Python's lock alone."""
    threads = int(os.environ.get("NPROC") or len(os.sched_getaffinity(0)))
    if threads == 1 or len(items) < 2:
        for item in items:
            work(item)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, items))
