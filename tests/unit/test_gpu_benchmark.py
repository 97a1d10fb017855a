"""benchmarks/gpu.py, which needs no GPU to be tried: small, of both sides, on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
from gpu_case import Case  # noqa: E402

sys.path.remove(str(BENCHMARKS))


def test_flops_are_the_published_networks():
    """Stable Diffusion's U-Net at 64 x 64, by PyTorch's counter: 804 GFLOPs; of 64 filters 53."""
    for filters, counted in ((320, 804.3e9), (64, 53.0e9)):
        assert Case("ours", "forward", filters, 1).flops == pytest.approx(counted, rel=0.01)
    forward = Case("ours", "forward", 64, 1).flops
    assert Case("ours", "train", 64, 3, remat=True).flops == 9 * forward
    assert Case("theirs", "sample", 64, 2, steps=20).flops == 80 * forward


def test_it_goes_on_where_it_was_cut_off_and_draws_what_it_measured(tmp_path):
    out = tmp_path / "gpu.json"
    cases = [case for case in gpu.plan([32], [2], True) if case.phase != "train"]
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--quick", "--sizes", "32", "--batches", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = json.loads(out.read_text())
    assert kept["command"].startswith("python benchmarks/gpu.py --quick")
    assert [Case(**record["case"]) for record in kept["cases"]] == cases
    assert all(len(record["seconds"]) == 2 and min(record["seconds"]) > 0 for record in kept["cases"])
    assert "| 32 filters |" in done.stdout and "batch 2" in done.stdout
    assert Image.open(out.with_suffix(".png")).size[0] > 400

    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stderr == "" and again.stdout == done.stdout  # nothing was measured


def test_a_case_that_fails_is_named_and_the_others_go_on(tmp_path):
    cases = [Case("ours", "product", 64, 1, rounds=1, calls=1), Case("ours", "forward", 33, 1)]  # 33: no groups of 32
    records = gpu.measure(cases, tmp_path / "gpu.json", float("inf"), "")
    assert "seconds" in records[0] and "filters: 33" in records[1]["error"]
    assert "- ours, forward, 33 filters, batch 1: " in "\n".join(gpu.tables(records))
