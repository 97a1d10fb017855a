"""The smoke study through profiles/slurm on a real Slurm of two nodes, which `tests/slurm/run` starts."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import REPO
from safetensors.numpy import load_file

pytestmark = pytest.mark.skipif("LDMSCALE_SLURM" not in os.environ, reason="needs a Slurm of its own: tests/slurm/run")
OVERLAY = "pretrain: {steps: 200, checkpoints: [20, 200]}\n"  # long enough to be cancelled in between
RESULTS = Path("results/smoke")
TRAINED = RESULTS / "models" / "f8" / "pretrain.json"
SOON = ["--slurm-init-seconds-before-status-checks", "5", "--seconds-between-status-checks", "5"]
LIMIT = 1500  # seconds that one run of Snakemake may take


def start(folder, *arguments):
    """Snakemake in ``folder``, its output in a file there."""
    folder.mkdir(exist_ok=True)
    shutil.copy(REPO / "config.yaml", folder)
    (folder / "overlay.yaml").write_text(OVERLAY)
    command = [sys.executable, "-m", "snakemake", *map(str, arguments), "--snakefile", REPO / "Snakefile"]
    command += ["--configfile", REPO / "configs" / "smoke.yaml", "overlay.yaml"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "SNAKEMAKE_", "NPROC"))}
    with open(folder / "said", "w") as said:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)


def finish(process, folder):
    try:
        assert process.wait(LIMIT) == 0, (folder / "said").read_text()[-20_000:]
    finally:
        process.terminate()


def on_slurm(folder, *targets):
    return start(folder, *targets, "--profile", REPO / "profiles" / "slurm", *SOON)


def queue():
    """The running jobs: {id: (rule and wildcards, nodes)}."""
    lines = subprocess.run(
        ["squeue", "--noheader", "--states=RUNNING", "--format=%i %D %k"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {job: (comment, int(nodes)) for job, nodes, comment in (line.split(maxsplit=2) for line in lines)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("slurm") / "study"


def test_a_training_over_two_nodes_is_cancelled_and_goes_on(folder):
    running = on_slurm(folder, TRAINED)
    cancelled = None
    while running.poll() is None and not cancelled:
        time.sleep(0.2)
        metrics = (folder / TRAINED).with_suffix("") / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            cancelled, nodes = next((job, n) for job, (what, n) in queue().items() if "pretrain" in what)
            subprocess.run(["scancel", cancelled], check=True)
    assert cancelled, (folder / "said").read_text()[-20_000:]
    assert nodes == 2
    finish(running, folder)
    assert "Error in rule pretrain" in (folder / "said").read_text()
    log = (folder / RESULTS / "logs" / "pretrain" / "f8.log").read_text()
    assert "resumed at step" in log and log.rstrip().endswith("done")


def test_its_weights_are_those_of_one_process(folder, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone)
    shutil.rmtree(alone / RESULTS / "models")
    finish(start(alone, TRAINED, "--cores", "2"), alone)
    spread, one = (load_file((at / TRAINED).with_suffix("") / "step-20.safetensors") for at in (folder, alone))
    assert spread.keys() == one.keys()
    for name in spread:
        np.testing.assert_allclose(spread[name], one[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_study_runs_to_its_report(folder):
    finish(on_slurm(folder), folder)
    for name in ("report.html", "explorer.html", "scores.parquet", "claims.json"):
        assert (folder / RESULTS / name).stat().st_size
    again = on_slurm(folder, "-n")
    finish(again, folder)
    assert "Nothing to be done" in (folder / "said").read_text()
