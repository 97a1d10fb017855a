"""Faults of one job, each a function of (undisturbed run, folder to work in, random numbers) -> [(what, outcome)]."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
from folders import RESULTS, Folder
from outcomes import EQUAL, REFUSED, SILENT, SKIPPED, Outcome, again, ended_of, judged, refused
from study import Job, Reference, Running, copy, forget

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What a job reads, or finds of an earlier run of itself.
READ = {
    "tokenizer": ["data/train-*.npz", "data/data.json"],
    "autoencoder": ["data/train-*.npz", "data/data.json", "encoders/autoencoder/*.safetensors"],
    "clip": ["data/train-*.npz", "encoders/tokenizer.json", "encoders/bpe.json", "encoders/clip/*.safetensors"],
    "latents": ["data/train-*.npz", "encoders/*.json", "encoders/*/step-*.safetensors", "latents/[0-9]*/*"],
    "prompts": ["data/*.npz", "data/data.json", "encoders/*.json", "encoders/clip/step-*.safetensors"],
    "reference": ["data/*.npz", "data/data.json", "encoders/clip.json", "encoders/clip/step-*.safetensors"],
    "pretrain": ["latents/**/*.npy", "latents/latents.json", "encoders/autoencoder.json", "models/**/*.safetensors"],
    "generate": ["prompts/*.npy", "prompts/prompts.json", "latents/latents.json", "models/*/pretrain.json",
                 "models/*/pretrain/step-*", "encoders/autoencoder.json", "cells/**/sample.json"],
    "score": ["cells/**/*.npy", "cells/**/*.json", "reference/*", "encoders/clip/step-*.safetensors", "prompts/*.npy"],
    "gather": ["cells/**/scores.json", "costs.json", "timing.json"],
    "figure": ["scores.parquet", "cells/**/gallery.npy", "cells/**/sample.json"],
    "table1": ["scores.parquet"],
}  # fmt: skip


def _some(reference: Reference, rng: random.Random) -> Job:
    """Any job but the one whose result is measured seconds."""
    return rng.choice([job for job in reference.jobs if job.rule != "timing"])


def damaged(reference: Reference, place: Path, rng: random.Random) -> list[Outcome]:
    """A file that a job reads is cut short or has a flipped bit, its size and times as they may be."""
    job = rng.choice([job for job in reference.jobs if job.rule in READ])
    folder = copy(reference, place)
    root = folder / RESULTS
    found = [path for pattern in READ[job.rule] for path in root.glob(pattern) if path.is_file()]
    path = rng.choice(sorted(path for path in found if path.stat().st_size))
    forget(job, folder, thoroughly=rng.random() < 0.7 and not str(path).endswith("state.safetensors"))
    if not path.exists():  # it was the job's own, taken away
        forget(job, folder)
        path = folder / rng.choice(job.inputs)
    name, content = str(path.relative_to(root)), bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if rng.random() < 0.4:
        what, content = f"{name} cut at {at}", content[:at]
    else:
        content[at] ^= 1 << rng.randrange(8)
        what = f"{name}: a bit of byte {at}"
    times = path.stat()
    path.unlink()  # of the finished study it is a link
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    ended = ended_of(Running(job, folder, reference.cache))
    if ended.status == 0:
        return [(f"{job.rule}: {what}", judged(folder, reference, ended.said, but=name))]
    return [(f"{job.rule}: {what}", refused(ended, path.name, str(path.parent.relative_to(root))))]


def killed(reference: Reference, place: Path, rng: random.Random) -> list[Outcome]:
    """A job that is begun anew gets signal after signal, at any moment, before it is left to finish."""
    job, folder, found = _some(reference, rng), copy(reference, place), []
    forget(job, folder)
    for _ in range(rng.randrange(1, 4)):
        number, after = rng.choice(SIGNALS), rng.uniform(0.0, 1.2 * job.seconds)
        running = Running(job, folder, reference.cache)
        ended = running.wait(after)
        if ended is None:
            running.send(number)
            ended = ended_of(running)
        if ended.status == 0:
            forget(job, folder)
        outcome = f"{SILENT}: {ended.said.strip()[-150:]}" if ended.traceback else EQUAL
        found.append((f"{job.rule}: {number.name} after {after:.2f} s", outcome))
    outcome = again(job, folder, reference)
    return [(what, one if one != EQUAL else outcome) for what, one in found]


def cached(reference: Reference, place: Path, rng: random.Random) -> list[Outcome]:
    """Compiled programs are cut short or have flipped bits."""
    job = rng.choice([j for j in reference.jobs if j.rule in ("latents", "prompts", "reference", "generate", "score")])
    folder, cache = copy(reference, place), place / "cache"
    shutil.copytree(reference.cache, cache)
    forget(job, folder)
    programs = [path for path in cache.iterdir() if path.stat().st_size]
    for path in programs:
        content = bytearray(path.read_bytes())
        at = rng.randrange(len(content))
        if rng.random() < 0.5:
            content = content[:at]
        else:
            content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    ended = ended_of(Running(job, folder, str(cache)))
    what = f"{job.rule}: all {len(programs)} compiled programs"
    return [(what, judged(folder, reference, ended.said) if ended.status == 0 else refused(ended, str(cache)))]


def starved(reference: Reference, place: Path, rng: random.Random) -> list[Outcome]:
    """A job gets less memory than it wants, then enough. It may die of it as the system would let it: by a signal, or
    by the C library, which ends a process that has no room for a thread (status 127, and a line that says so)."""
    job, folder, more = _some(reference, rng), copy(reference, place), int(2 ** rng.uniform(0, 9))
    forget(job, folder)

    def limit() -> None:
        size = psutil.Process().memory_info().vms + (more << 20)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    ended = ended_of(Running(job, folder, reference.cache, limit))
    what = f"{job.rule}: {more} MiB more and no further"
    if ended.status == 0:
        return [(what, judged(folder, reference, ended.said))]
    by_libc = ended.status == 127 and "cannot allocate memory" in ended.said
    if ended.status > 0 and ended.sentence is None and not by_libc:
        return [(what, refused(ended))]
    return [(what, again(job, folder, reference))]


def _mounted(reference: Reference, place: Path, rng: random.Random, readonly: bool) -> list[Outcome]:
    name = "a disk turned read-only" if readonly else "a full disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False).returncode:
        return [(name, f"{SKIPPED}: a file system cannot be mounted here")]
    try:
        job, inside = _some(reference, rng), place / "study"
        shutil.copytree(copy(reference, place.with_suffix(".links")).path, inside)
        shutil.rmtree(place.with_suffix(".links"))
        folder = Folder(inside)
        forget(job, folder)
        if readonly:
            after = rng.choice([0.0, rng.uniform(0.0, job.seconds)])
            running, what = Running(job, folder, reference.cache), f"after {after:.2f} s"
            running.wait(after)
            while _remount(place, "ro"):  # refused while a file is being written
                time.sleep(0.001)
            ended = ended_of(running)
        else:
            room = int(2 ** rng.uniform(2, 9))
            what = f"{room} KiB left"
            _remount(place, f"size={shutil.disk_usage(place).used // 1024 + room}k")
            ended = ended_of(Running(job, folder, reference.cache))
        _remount(place, "rw,size=1g")
        what = f"{job.rule}: {name}, {what}"
        if ended.status and ended.sentence is None:
            return [(what, refused(ended))]
        outcome = again(job, folder, reference) if ended.status else judged(folder, reference, ended.said)
        return [(what, f"{REFUSED}: {ended.sentence[:90]}" if ended.status and outcome == EQUAL else outcome)]
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def _remount(place: Path, options: str) -> int:
    return subprocess.run(["mount", "-o", f"remount,{options}", place], capture_output=True, check=False).returncode


def filled(reference: Reference, place: Path, rng: random.Random) -> list[Outcome]:
    """A job's disk is full, and then is not."""
    return _mounted(reference, place, rng, readonly=False)


def readonly(reference: Reference, place: Path, rng: random.Random) -> list[Outcome]:
    """A job's disk turns read-only, and back."""
    return _mounted(reference, place, rng, readonly=True)
