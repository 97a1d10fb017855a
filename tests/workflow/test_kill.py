"""`kill -9` at any moment, or told to stop, started again: bit for bit what an uninterrupted run ends with, and no
half-written file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from folders import RESULTS
from safetensors.numpy import load_file

from ldmscale.preemption import STATUS
from ldmscale.provenance import read_json

RUN = Path(__file__).with_name("training_run.py")
FILES = ("state.safetensors", "step-0.safetensors", "step-6.safetensors", "step-24.safetensors")
METRICS, EVENTS = "metrics.jsonl", "events.out.tfevents."


def files(folder, but=()):
    """The bytes of a run's weights and state, and its records, ``but`` some steps', but for how long things took."""
    records = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    said = [{k: v for k, v in r.items() if k not in ("time", "images_per_second")} for r in records]
    weights = {name: (folder / name).read_bytes() for name in FILES}
    return weights | {METRICS: [record for record in said if record["step"] not in but]}


def start(folder, *moment):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, RUN, folder, *moment], env=environment, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def finish(folder, *moment):
    """Exit status and what was said."""
    process = start(folder, *moment)
    said = process.communicate(timeout=1200)[1]
    return process.returncode, said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    status, said = finish(folder)
    assert status == 0 and "resumed" not in said, said
    return files(folder)


def assert_whole(folder):
    """What stands under a final name can be read, and is of the step that it says."""
    for path in folder.glob("[!.]*.safetensors"):
        assert load_file(path), path


# In this order, each run going on from what the one before it left: 24 steps, of which every other one is saved; 0, 6
# and 24 kept.
MOMENTS = [
    ("half:1", None),  # the weights of step 0, half-written: nothing to go on from
    ("half:2", None),  # the first state, half-written: nothing to go on from either
    ("before:3", None),  # a state written and not renamed: the older one stands
    ("after:step-6.safetensors", 2),  # weights kept, their state not yet
    ("batch:9", 4),
    ("SIGTERM:10", 8),  # it finishes this step, the 11th
    ("half:8", 11),  # in the last state; step 24 is there
    (None, 22),
]
STOPPED = (11, 12)  # where a record ends as it was told to stop, and the next one, of fewer steps


def test_killed_at_every_kind_of_moment_in_one_run(tmp_path, whole):
    for moment, resumed in MOMENTS:
        status, said = finish(tmp_path, *filter(None, [moment]))
        ended = {None: 0, "SIGTERM:10": STATUS}.get(moment, -signal.SIGKILL)
        assert status == ended, (moment, said)
        assert (f"resumed at step {resumed} of 24" in said) if resumed else "resumed" not in said, (moment, said)
        assert_whole(tmp_path)
    assert files(tmp_path, STOPPED) == {**whole, METRICS: [r for r in whole[METRICS] if r["step"] not in STOPPED]}
    left = sorted(name for name in os.listdir(tmp_path) if not name.startswith(EVENTS))
    assert left == sorted([*FILES, METRICS])  # and what was half-written is gone
    assert len(list(tmp_path.glob(f"{EVENTS}*"))) == 1


def test_killed_from_outside_at_no_chosen_moment(tmp_path, whole):
    process = start(tmp_path)
    losses = tmp_path / METRICS
    while process.poll() is None and not (losses.exists() and losses.read_text().count("\n") >= 2):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (tmp_path / "step-24.safetensors").exists()
    assert_whole(tmp_path)
    status, said = finish(tmp_path)
    assert status == 0 and "resumed at step" in said, said
    assert files(tmp_path) == whole


# ---------------------------------------------------------------- through Snakemake

MODEL = RESULTS / "models" / "f4"


def interrupt(folder, whom):
    """Start training f4, and kill ``whom`` (``job`` or ``everything``) once a state is there."""
    process = subprocess.Popen(
        folder.command(MODEL / "pretrain.json"), cwd=folder.path, env=folder.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    state = folder / MODEL / "pretrain" / "state.safetensors"
    before = state.stat().st_mtime_ns if state.exists() else None
    while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
        time.sleep(0.001)
    if whom == "everything":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        children = psutil.Process(process.pid).children(recursive=True)
        (job,) = [p for p in children if any(part.endswith("pretrain.py") for part in p.cmdline()[1:2])]
        job.kill()
    said = process.communicate(timeout=1200)[0]
    assert process.returncode != 0, said
    assert not (folder / MODEL / "pretrain.json").exists()
    assert not (folder / MODEL / "pretrain" / "step-40.safetensors").exists(), "it was too quick to be killed"
    assert_whole(folder / MODEL / "pretrain")
    return said


def test_a_killed_training_job_goes_on_under_snakemake(copy):
    """The job alone is killed, then Snakemake with everything below it; the run that follows ends as if nothing was."""
    kept = {path.name: path.read_bytes() for path in (copy / MODEL / "pretrain").glob("step-*")}
    manifest = read_json(copy / MODEL / "pretrain.json")
    assert len(kept) == 2
    for path in [*(copy / MODEL / "pretrain").iterdir(), copy / MODEL / "pretrain.json"]:
        path.unlink() if path.is_file() else shutil.rmtree(path)

    interrupt(copy, "job")
    interrupt(copy, "everything")
    # Snakemake's lock outlives it, and it says what to do.
    assert "--unlock" in copy.refused(MODEL / "pretrain.json")
    copy.run("--unlock")
    copy.run(MODEL / "pretrain.json")

    assert "resumed at step" in (copy / RESULTS / "logs" / "pretrain" / "f4.log").read_text()
    assert {path.name: path.read_bytes() for path in (copy / MODEL / "pretrain").glob("step-*")} == kept
    assert read_json(copy / MODEL / "pretrain.json") == manifest
    records = [json.loads(line)["step"] for line in (copy / MODEL / "pretrain" / METRICS).read_text().splitlines()]
    assert records == sorted(set(records)) and records[-1] == 40
