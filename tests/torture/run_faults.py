"""Faults of a whole run of Snakemake, as those of a job (job_faults.py)."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from pathlib import Path

import psutil
from folders import RESULTS, Folder
from helpers import own
from job_faults import SIGNALS
from outcomes import EQUAL, REFUSED, SILENT, Outcome, judged
from study import FEW, PATIENCE, Reference, copy, forget


def start(folder: Folder, reference: Reference, *arguments, overlay=FEW) -> subprocess.Popen:
    environment = folder.environment() | {"LDMSCALE_COMPILE_CACHE": reference.cache}
    return subprocess.Popen(
        folder.command(*reference.targets, *arguments, overlay=overlay), cwd=folder.path, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def mended(folder: Folder, reference: Reference, tries: int = 3, gone: bool = False) -> str:
    """Run again, as a user does, until Snakemake is content; unlocks where Snakemake asks for it. ``gone``: files that
    nothing asks for may be missing."""
    said = ""
    for _ in range(tries):
        process = start(folder, reference, "--rerun-incomplete")
        said = process.communicate(timeout=PATIENCE)[0]
        if process.returncode == 0:
            return judged(folder, reference, said, gone=gone)
        if "--unlock" in said:
            folder.run("--unlock", overlay=FEW)
        elif "Traceback (most recent call last)" in said:
            break
    return f"{SILENT}: it does not run again: {said.strip()[-200:]}"


def chain(reference: Reference, place: Path, rng: random.Random) -> list[Outcome]:
    """A run from nothing is killed, started again, killed again, until it ends: a job, Snakemake, or all at once."""
    folder, found = Folder(place), []
    for _ in range(12):
        process = start(folder, reference, "--rerun-incomplete")
        number, whom = rng.choice(SIGNALS), rng.choice(["a job", "Snakemake", "all"])
        try:
            process.wait(timeout=2 + rng.expovariate(3 / reference.seconds))
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            jobs = [p for p in children if any(".snakemake/scripts" in part for part in _cmdline(p))]
            victim = whom
            if whom == "a job" and jobs:
                job = rng.choice(jobs)
                victim = re.sub(r".*\.(\w+)\.py$", r"\1", next(iter(_cmdline(job)[1:2]), whom))
                _send(job.pid, number)
            elif whom == "all":
                os.killpg(process.pid, number)
            else:
                victim = "Snakemake"
                _send(process.pid, number)
            found.append(f"{number.name} to {victim}")
        said = process.communicate(timeout=PATIENCE)[0]
        for job in _left(place):
            job.wait(timeout=PATIENCE)
        if "--unlock" in said:
            folder.run("--unlock", overlay=FEW)
        if process.returncode == 0:
            break
    outcome = mended(folder, reference)
    return [(f"a run from nothing: {what}", outcome) for what in found]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it had ended
        pass


def _left(place: Path) -> list[psutil.Process]:
    """What a killed Snakemake has left running."""
    return [p for p in psutil.process_iter() if any(str(place) in part for part in _cmdline(p))]


def twice(reference: Reference, place: Path, rng: random.Random) -> list[Outcome]:
    """A second run in the same folder: it is refused, or comes so late that it is alone; the first ends well.

    Snakemake looks for files that are not whole before it looks at its lock: without profiles/local's rerun-incomplete
    it may name one that the first run is about to finish.
    """
    folder, after = copy(reference, place), rng.uniform(0.0, 4.0)
    for job in reference.jobs:
        if job.rule in ("gather", "figure", "table1"):
            forget(job, folder)
    first = start(folder, reference, "--rerun-incomplete")
    time.sleep(after)
    careful = rng.random() < 0.5
    second = start(folder, reference, *(["--rerun-incomplete"] if careful else []))
    said = second.communicate(timeout=PATIENCE)[0]
    whole = first.communicate(timeout=PATIENCE)[0]
    what = f"a second run after {after:.1f} s" + (", rerun-incomplete" if careful else "")
    if {first.returncode, second.returncode} == {0} and "Nothing to be done" not in said + whole:
        return [(what, f"{SILENT}: both were let in")]
    reasons = ("lock",) if careful else ("lock", "seem to be incomplete")
    for process, words, known in ((first, whole, ("lock",)), (second, said, reasons)):
        if process.returncode and not any(reason in words.lower() for reason in known):
            return [(what, f"{SILENT}: it fails without a word on the lock: {words.strip()[-300:]}")]
    return [(what, judged(folder, reference, said + whole))]


def edited(reference: Reference, place: Path, rng: random.Random) -> list[Outcome]:
    """A setting is changed, the job fails, and the change is taken back: the old files again."""
    folder = copy(reference, place)
    path = rng.choice(sorted((folder / RESULTS / "latents").glob("**/*.npy")))
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    process = start(folder, reference, overlay={**FEW, "models": own("f4", learning_rate=5.0e-4)["models"][:2]})
    said = process.communicate(timeout=PATIENCE)[0]
    path.write_bytes(whole)
    what = f"another learning rate, {path.relative_to(folder / RESULTS)} broken, both taken back"
    if process.returncode == 0 or "Traceback (most recent call last)" in said:
        return [(what, f"{SILENT}: {said.strip()[-150:]}")]
    return [(what, mended(folder, reference))]


def clock(reference: Reference, place: Path, rng: random.Random) -> list[Outcome]:
    """The clock jumped while files were written: times of a third of them are off by up to three days, either way."""
    folder = copy(reference, place)
    paths = sorted(path for path in (folder / RESULTS).rglob("*") if path.is_file())
    for path in rng.sample(paths, k=len(paths) // 3):
        content = path.read_bytes()
        path.unlink()  # of the finished study it is a link
        path.write_bytes(content)
        at = time.time() + rng.choice([-1, 1]) * rng.uniform(60, 3 * 86400)
        os.utime(path, (at, at))
    what, process = "file times off by up to three days", start(folder, reference)
    said = process.communicate(timeout=PATIENCE)[0]
    if process.returncode == 0:
        return [(what, judged(folder, reference, said))]
    # Snakemake refuses what it makes from files of the future, and takes the job's outputs away.
    sentence = re.search(r"Output .* has older modification time .* clock skew .*", said)
    if not sentence or "Traceback (most recent call last)" in said:
        return [(what, f"{SILENT}: {said.strip()[-200:]}")]
    now = time.time()
    for path in filter(Path.exists, paths):
        os.utime(path, (now, now))  # as docs/robustness.md advises
    outcome = mended(folder, reference, gone=True)
    return [(what, f"{REFUSED}: {sentence[0][:90]}" if outcome == EQUAL else outcome)]
