"""What stands before JAX is imported: compiler flags that make jaxlib 0.10.2 compute right and fast, and threads."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from ldmscale import runtime

# jax-ml/jax#39103. In float32 the last sum of squares is exactly 32768 squared.
REPRO = """
import sys
if sys.argv[1] == "ours":
    import ldmscale
import jax, jax.numpy as jnp
i = jnp.arange(32769, dtype=jnp.float32)
x = jnp.stack((i, jnp.zeros_like(i), jnp.zeros_like(i)), axis=1)
f = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))
print(float(jax.jit(f)(x)[-1]))
"""


def repro(how):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    done = subprocess.run([sys.executable, "-c", REPRO, how], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_jax_computes_right_under_ldmscale():
    if version("jaxlib") != "0.10.2":
        pytest.skip(f"jaxlib is {version('jaxlib')}; the miscompilation is 0.10.2's")
    assert repro("ours") == 32768.0**2
    # The flag is what does it: without it this program is wrong, so that the line above could have failed.
    assert repro("plain") != 32768.0**2


@pytest.fixture
def environment(monkeypatch):
    """``os.environ`` without what the session has set already; put back afterwards."""
    for name in ("XLA_FLAGS", "OPENBLAS_NUM_THREADS", "NPROC"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return os.environ


@pytest.mark.parametrize("installed", ["0.10.1", "0.10.20", "0.11.0", "0.9.2"])
def test_other_releases_are_not_given_a_flag_that_they_may_not_know(environment, monkeypatch, installed):
    monkeypatch.setattr(runtime, "version", lambda package: installed)
    runtime.prepare()
    assert "XLA_FLAGS" not in environment


@pytest.mark.parametrize("gpu", [False, True])
def test_the_flags_join_the_users_own_and_leave_a_users_choice_alone(environment, monkeypatch, gpu):
    monkeypatch.setattr(runtime, "version", lambda package: "0.10.2")
    monkeypatch.setattr(runtime, "find_spec", lambda package: object() if gpu else None)
    ours = [*runtime.FLAGS, *(() if gpu else runtime.CPU_ONLY_FLAGS)]
    runtime.prepare()
    assert environment["XLA_FLAGS"].split() == ours
    runtime.prepare()
    assert environment["XLA_FLAGS"].split() == ours
    environment["XLA_FLAGS"] = "--xla_dump_to=/tmp/x"
    runtime.prepare()
    assert environment["XLA_FLAGS"].split() == ["--xla_dump_to=/tmp/x", *ours]
    environment["XLA_FLAGS"] = "--xla_cpu_experimental_ynn_fusion_type=dot"
    runtime.prepare()
    assert environment["XLA_FLAGS"].split() == ["--xla_cpu_experimental_ynn_fusion_type=dot", *ours[1:]]


def test_the_flags_stand_in_this_process():
    if version("jaxlib") == runtime.TUNED_JAXLIB:
        assert all(flag in os.environ["XLA_FLAGS"] for flag in runtime.FLAGS)


def test_threads_are_held_for_blas_unless_the_user_says_otherwise(environment):
    runtime.prepare()
    assert environment["OPENBLAS_NUM_THREADS"] == "1"
    environment["OPENBLAS_NUM_THREADS"] = "4"
    runtime.prepare()
    assert environment["OPENBLAS_NUM_THREADS"] == "4"


@pytest.mark.parametrize("count", [1, 2])
def test_a_job_compiles_a_program_in_as_many_parts_as_it_has_threads(environment, count):
    runtime.use_threads(count)
    if version("jaxlib") == runtime.TUNED_JAXLIB:
        assert environment["XLA_FLAGS"] == runtime.PARTS.format(count)
        environment["XLA_FLAGS"] = "--xla_cpu_parallel_codegen_split_count=3"
        runtime.use_threads(count)
        assert environment["XLA_FLAGS"] == "--xla_cpu_parallel_codegen_split_count=3"


def test_threads_are_devices_to_a_job_that_cuts_batches_over_them(environment):
    if version("jaxlib") == runtime.TUNED_JAXLIB:
        runtime.use_threads(4, devices=4)
        assert environment["XLA_FLAGS"].split() == [runtime.PARTS.format(4), runtime.DEVICES.format(4)]
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=3"
        runtime.use_threads(4, devices=4)
        assert environment["XLA_FLAGS"].split()[0] == "--xla_force_host_platform_device_count=3"
        assert len(environment["XLA_FLAGS"].split()) == 2


FAULTS = """
import resource, sys
from ldmscale.runtime import keep_memory, use_threads
use_threads(1)
if sys.argv[1] == "keeps":
    keep_memory()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: jnp.outer(x, x) @ x)  # a matrix that it needs memory for at each call
x, found = jnp.arange(3000.0), []
for _ in range(6):
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        f(x).block_until_ready()
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began)
# On a busy machine a call may take its memory before the last one's is free: a new place, touched once.
print(min(found))
"""


def test_a_process_that_trains_keeps_its_memory():
    def faults(what):
        return int(subprocess.run([sys.executable, "-c", FAULTS, what], capture_output=True, check=True).stdout)

    assert faults("does not") > 100 > 10 * faults("keeps")  # 36 MB ten times, in pages of 2 MB at the most


HEAPS = """
import ctypes, resource, sys, threading
from ldmscale.runtime import keep_memory
if sys.argv[1] == "keeps":
    keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def run():
    for _ in range(2):
        began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            blocks = [ctypes.c_void_p(libc.malloc(36 << 20)) for _ in range(3)]  # one to each heap of the thread
            for block in blocks:
                ctypes.memset(block, 1, 36 << 20)
            for block in reversed(blocks):
                libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def test_a_threads_empty_heaps_are_kept():
    def faults(what):
        return int(subprocess.run([sys.executable, "-c", HEAPS, what], capture_output=True, check=True).stdout)

    assert faults("does not") > 300 > 10 * faults("keeps")


def test_where_malloc_cannot_be_told_a_process_trains_all_the_same(monkeypatch):
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: object())
    runtime.keep_memory()


THREADS = """
import sys
from ldmscale.runtime import use_compile_cache, use_threads
use_threads(int(sys.argv[2]))
use_compile_cache(sys.argv[1])
import jax, os
jax.jit(lambda x: x @ x)(jax.numpy.ones((400, 400))).block_until_ready()
names = [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]
print(sum(name.startswith("tf_XLAEigen") for name in names))
"""


def programs(folder, threads=1):
    """The names, that is the keys, of what a job of so many threads leaves in its compile cache ``folder``."""
    command = [sys.executable, "-c", THREADS, str(folder), str(threads)]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # of the tests' own
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == threads
    return {path.name for path in folder.glob("jit_*-cache")}


def test_a_job_computes_in_one_thread_and_leaves_its_programs_for_the_next_wherever_the_cache_lies(tmp_path):
    here = programs(tmp_path / "cache")
    assert here == programs(tmp_path / "study moved" / "cache") != set()


def test_a_job_does_not_take_what_was_compiled_for_other_threads(tmp_path):
    """A loop is divided among threads when it is compiled, and JAX's key does not say among how many."""
    assert not programs(tmp_path / "one") & programs(tmp_path / "two", threads=2)
