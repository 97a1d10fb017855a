"""A bounded part of `make torture`: the study's first two jobs, a fixed seed; what a full disk and Ctrl-C say."""

import errno
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ldmscale.errors import UserError
from ldmscale.files import MARK, replacing
from ldmscale.jobs import job
from ldmscale.runtime import check_cache

TORTURE = Path(__file__).with_name("torture.py")
KINDS = ("damaged", "killed", "filled", "readonly", "starved")


def test_faults_of_a_fixed_seed_are_all_survived():
    kinds = [argument for kind in KINDS for argument in ("--only", kind)]
    command = [sys.executable, TORTURE, "encoders/tokenizer.json", "--seed", "1", "--faults", "25", *kinds]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    tried, survived, silent = map(int, re.findall(r"(\d+) faults, (\d+) survived, (\d+) silent", done.stdout)[0])
    assert (done.returncode, silent) == (0, 0) and tried == survived >= 15, done.stdout


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError("4096 requested and 1024 written"),  # NumPy's
        RuntimeError("Error: I/O error: No space left on device (os error 28)"),  # safetensors'
    ],
)
def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path, error):
    (tmp_path / "a.npy").write_bytes(b"old")
    with pytest.raises(UserError, match=r"a\.npy cannot be written .* make room"), replacing(tmp_path / "a.npy"):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"] and (tmp_path / "a.npy").read_bytes() == b"old"


def test_what_is_wrong_with_the_job_and_not_with_the_disk_stays_what_it_is(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "gone"), ValueError("shapes"), KeyboardInterrupt()):
        with pytest.raises(type(error)), replacing(tmp_path / "a.npy"):
            raise error


def snakemake(log):
    return SimpleNamespace(log=[str(log)], threads=1, rule="data", resources={})


def test_a_log_that_cannot_be_written_is_a_sentence(tmp_path, capsys):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with (
        pytest.raises(SystemExit, match=r"^error: .*logs/data\.log cannot be written"),
        job(snakemake(tmp_path / "logs" / "data.log")),
    ):
        pass


def test_a_log_on_a_full_disk_does_not_hide_what_the_job_says(monkeypatch):
    with pytest.raises(SystemExit, match="^error: the cause$"), job(snakemake("/dev/full")):
        raise UserError("the cause")
    with pytest.raises(SystemExit, match="^error: ValueError: shapes"), job(snakemake("/dev/full")) as say:
        say("a line")
        raise ValueError("shapes")


def test_ctrl_c_is_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="^error: interrupted"), job(snakemake(tmp_path / "data.log")):
        raise KeyboardInterrupt
    assert "interrupted" in (tmp_path / "data.log").read_text()


def program(folder: Path) -> Path:
    """What JAX may have left, of bytes so alike that Adler-32 misses some flipped bits."""
    path = folder / "jit_step-0123-cache"
    path.write_bytes(zlib.compress(np.random.default_rng(0).integers(0, 8, 3000, np.uint8).tobytes()))
    return path


def test_every_flipped_bit_of_a_compiled_program_takes_it_out_of_the_cache(tmp_path):
    path = program(tmp_path)
    right = zlib.decompress(path.read_bytes())
    check_cache(tmp_path)
    whole = path.read_bytes()
    assert zlib.decompress(whole) == right and len(whole) == path.stat().st_size
    passed = 0
    for at in range(0, len(whole) - 14):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(bytes(flipped))
        try:
            passed += zlib.decompress(bytes(flipped)) != right
        except zlib.error:
            pass
        check_cache(tmp_path)
        assert not path.exists(), at
    assert passed  # by zlib alone


def test_a_half_written_program_is_removed_once_nobody_writes_it_any_more(tmp_path):
    path = program(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    check_cache(tmp_path)
    assert path.exists()
    os.utime(path, (time.time() - 3600,) * 2)
    check_cache(tmp_path)
    assert not path.exists()


def test_jax_reads_a_sealed_program(tmp_path):
    script = (
        "import sys, jax; from ldmscale.runtime import use_compile_cache; use_compile_cache(sys.argv[1]);"
        "hits = []; jax.monitoring.register_event_listener(lambda e, **_: hits.append(e));"
        "print(jax.jit(lambda x: x * 2 + 1)(20.5), '/jax/compilation_cache/cache_hits' in hits)"
    )
    said = [
        subprocess.run([sys.executable, "-W", "error", "-c", script, tmp_path], capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert said == ["42.0 False\n", "42.0 True\n"]
    check_cache(tmp_path)
    assert all(MARK in path.read_bytes() for path in tmp_path.glob("*-cache"))
