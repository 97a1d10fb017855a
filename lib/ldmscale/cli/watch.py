"""``ldmscale watch``: what a running study is doing, from its jobs' logs."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmscale.cli.options import aligned, command
from ldmscale.errors import UserError
from ldmscale.jobs import DONE, LINE, STARTED, TRAILER
from ldmscale.text import visible

ABOUT = """\
Shows the running jobs of a study: how far each is, what it says and the time that it has left. In a terminal the bars
move until Ctrl-C; elsewhere the present state is printed once, a line a job.

Training runs can be watched closer: each leaves metrics.jsonl beside its weights, and TensorBoard's event files
(`tensorboard --logdir results/<study>/models`)."""
EXAMPLE = """\
  ldmscale watch results/embedded"""
EVERY = 0.5  # seconds between two looks
SILENT = 900.0  # seconds after which a job of another machine that says nothing counts as gone
TAIL = 8192  # bytes at a log's end that are read
BAR = 14  # characters


@dataclass(frozen=True)
class Job:
    """A job by its log: ``name``, as ``pretrain f12``; ``state``: "running", "done" or "stopped" (killed, or failed);
    ``percent`` or None, ``left`` (text) or None; ``doing``: what it says; ``seconds`` since it began."""

    name: str
    state: str
    percent: int | None
    left: str | None
    doing: str
    seconds: float


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = command(commands, "watch", "progress of a running study", ABOUT, EXAMPLE)
    parser.add_argument("results", nargs="?", metavar="RESULTS", help="the study's folder (default: the latest one)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Show until Ctrl-C, or once."""
    folder = Path(args.results) if args.results else _latest(Path("results"))
    jobs = read_jobs(folder)
    if not sys.stdout.isatty():
        print(text(folder, jobs))
        return
    from rich.live import Live

    # Ctrl-C is how one leaves, and no failure.
    with suppress(KeyboardInterrupt), Live(screen(folder, jobs), refresh_per_second=4) as live:
        while True:
            time.sleep(EVERY)
            live.update(screen(folder, read_jobs(folder)))


def read_jobs(folder: Path) -> list[Job]:
    """Every job of the study in ``folder`` that has begun, by name.

    Raises:
        UserError: ``folder`` has no logs.
    """
    logs = folder / "logs"
    if not logs.is_dir():
        raise UserError(f"{folder} has no logs: give the folder of a study that was run, such as results/embedded")
    found = []
    for path in sorted(logs.rglob("*.log")):
        # Of `generate/task=t2i/model=f8.log`: generate t2i f8. Values may hold dots, as `cfg=2.5`.
        parts = str(path.relative_to(logs)).removesuffix(".log").split("/")
        job = read_job(path, " ".join(part.partition("=")[2] or part for part in parts))
        found += [job] if job else []
    return found


def read_job(path: Path, name: str) -> Job | None:
    """The job whose log is ``path``; None where the log is not one of :func:`ldmscale.jobs.job`'s, or gone."""
    try:
        with open(path, "rb") as file:
            first = file.readline().decode(errors="replace")
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            # What Python's warnings and other programs say is in the log as they said it.
            tail = [visible(line) for line in file.read().decode(errors="replace").splitlines()]
            age = time.time() - os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    start = LINE.fullmatch(first.strip())
    owner = start and STARTED.fullmatch(start[2])
    if not owner:
        return None
    lines = [match for match in map(LINE.fullmatch, tail) if match] or [start]  # a long traceback may hide them
    seconds, said = float(lines[-1][1]), [match[2] for match in lines]
    if said[-1] == DONE:
        return Job(name, "done", 100, None, DONE, seconds)
    running = _alive(int(owner[1]), owner[2], age)
    told = TRAILER.fullmatch(said[-1])
    # What it says between its counts is what the counts are of, as a student's name is of its steps.
    heading = next((line for line in reversed(said) if not TRAILER.fullmatch(line) and not STARTED.fullmatch(line)), "")
    doing = " | ".join(filter(None, [heading, told[1] if told else ""]))
    if not running:
        last = tail[-1].strip() if tail else ""
        return Job(name, "stopped", None, None, last if not LINE.fullmatch(last) else said[-1], seconds)
    return Job(name, "running", int(told[2]) if told else None, told[3] if told else None, doing, seconds + age)


def text(folder: Path, jobs: list[Job]) -> str:
    """The present state in plain lines."""
    rows = [
        [job.name, "" if job.percent is None else f"{job.percent} %", f"{job.left} left" if job.left else ""]
        for job in jobs
        if job.state == "running"
    ]
    doing = [job.doing for job in jobs if job.state == "running"]
    lines = [f"{line}  {said}".rstrip() for line, said in zip(aligned(rows) if rows else [], doing, strict=True)]
    stopped = [f"stopped: {job.name}: {job.doing}" for job in jobs if job.state == "stopped"]
    return "\n".join([_heading(folder, jobs), *lines, *stopped])


def screen(folder: Path, jobs: list[Job]) -> Any:
    """The present state with bars, for a terminal."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    running = [job for job in jobs if job.state == "running"]
    shares = ["" if job.percent is None else f"{job.percent} %" for job in running]
    left = [f"{job.left} left" if job.left else "" for job in running]
    table = Table.grid(padding=(0, 2), expand=True)
    for justify, column in (("left", [job.name for job in running]), ("left", ["x" * BAR]), ("right", shares),
                            ("right", left)):  # fmt: skip
        table.add_column(justify=justify, width=max(map(len, column), default=0))
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")  # what is said yields to the rest
    for job, share, until in zip(running, shares, left, strict=True):
        bar = ProgressBar(total=100, completed=job.percent or 0, width=BAR, pulse=job.percent is None)
        # As Text: what is said may hold what would be markup.
        table.add_row(Text(job.name), bar, share, until, Text(job.doing))
    stopped = [Text(f"stopped: {job.name}: {job.doing}", "red") for job in jobs if job.state == "stopped"]
    return Group(Text(_heading(folder, jobs), "bold"), table, *stopped)


def _heading(folder: Path, jobs: list[Job]) -> str:
    states = [job.state for job in jobs]
    running = f"{states.count('running')} running" if "running" in states else "nothing is running"
    return f"{folder}: {states.count('done')} jobs done, {running}"


def _alive(process: int, host: str, age: float) -> bool:
    """Whether the process that writes a log is there; of another machine's, whether the log is young."""
    if host != socket.gethostname():
        return age < SILENT
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _latest(results: Path) -> Path:
    """The study below ``results`` that wrote to a log last."""
    found = {max((p.stat().st_mtime for p in logs.rglob("*.log")), default=0.0): logs.parent
             for logs in results.glob("*/logs")}  # fmt: skip
    if not found:
        raise UserError("results/ has no study with logs: run `make study` first, or give a study's folder")
    return found[max(found)]
