"""What every workflow script does around its work: threads, compile cache, log, progress, and errors as sentences."""

from __future__ import annotations

import gc
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ldmscale import hosts, launch
from ldmscale.errors import UserError
from ldmscale.files import unwritable
from ldmscale.runtime import keep_memory, use_compile_cache, use_threads
from ldmscale.text import visible

COMPILE_CACHE = ".cache/jax"
DONE = "done"  # the last line of a job that ended well
INDENT = "  "  # of a line's further lines
EVERY = 10.0  # seconds between two lines of a loop that turns faster

Say = Callable[[str], None]


def duration(seconds: float) -> str:
    """``42 s``, ``7 min 05 s``, ``3 h 20 min``, ``2 d 04 h``: rounded up in seconds, cut above."""
    whole = max(0, -int(-seconds // 1))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


class Progress:
    """Says how far a job is and when it will be through: ``<text>  37 %, 7 min 05 s left``.

    ``total`` is the job's work, in any unit in which equal amounts take equal times. What is said within ``every``
    seconds of the last line is left out, but for the end.
    """

    def __init__(self, say: Say, total: float, every: float = 0.0):
        self._say, self._total, self._every = say, total, every
        self._began, self._said, self._skipped = time.monotonic(), -float("inf"), 0.0

    def skip(self, work: float) -> None:
        """``work`` of the total was there already and took no time."""
        self._skipped += work

    def __call__(self, done: float, text: str, always: bool = False) -> None:
        """``done`` of the total is done, what was skipped included; ``always``: however short after the last line."""
        now, new = time.monotonic(), done - self._skipped
        if not always and done < self._total and now - self._said < self._every:
            return
        self._said = now
        left = f", {duration((now - self._began) / new * (self._total - done))} left" if new > 0 else ""
        self._say(f"{text}  {100 * done / self._total:.0f} %{left}")

    def counted(self, what: str) -> Callable[[int, int], None]:
        """``tell(done, total)`` for a loop over things that are called ``what``."""
        return lambda done, total: self(done, f"{done}/{total} {what}")


# What watches a job reads from its log: `[seconds] text  37 %, 7 min 05 s left`, and in the first line who writes it.
LINE = re.compile(r"\[ *(\d+\.\d) s\] (.*)")
TRAILER = re.compile(r"(.*?)  (\d+) %(?:, (.+) left)?")
STARTED = re.compile(r"process (\d{1,9}) on (\S+)")
COUNT = re.compile(r"(\d+)/([1-9]\d*)\b")


@contextmanager
def job(snakemake: Any, trains: bool = False, threads: int | None = None) -> Iterator[Say]:
    """Run a script's body; yields ``say(line)``, which writes to the job's log.

    ``snakemake`` is what Snakemake hands to the script, of which its ``log``, ``threads``, ``rule`` and ``resources``
    are read. Where its resources name a launcher (:mod:`ldmscale.launch`), the body does not run here: the script runs
    on every host, and this process ends with its exit status. Of several hosts the first alone writes the log. One that
    ``trains`` keeps its memory (:func:`ldmscale.runtime.keep_memory`). Its programs have ``threads``, by default all
    that Snakemake gives the job; on a CPU each is a device to one that does not train, which cuts batches over them.

    A line that begins with ``done/total`` gets the share that is done and the time left (:class:`Progress`), unless it
    has them. A :class:`UserError` ends the process with status 1 and its sentence on standard error and in the log; any
    other exception is logged whole and ends it with its last line, so that a user sees what failed and where to read
    more.
    """
    log = snakemake.log[0]
    with _sentences():
        _launch(snakemake)
    count = threads or snakemake.threads
    use_threads(count, 1 if trains else count)
    if trains:
        keep_memory()
    # Tracing makes hundreds of thousands of objects that stay: looking through them all again and again is a tenth of
    # its time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    use_compile_cache(os.environ.get("LDMSCALE_COMPILE_CACHE", COMPILE_CACHE))
    with _sentences():
        hosts.connect()
    began, counting = time.monotonic(), {}
    with _opened(log if hosts.writes() else os.devnull) as file:

        def keep(text: str) -> None:
            with suppress(OSError):  # a full disk: what the job itself cannot write will say so
                file.write(text.encode(errors="backslashreplace"))

        def write(line: str) -> None:
            # Further lines are indented: one that names a file cannot pass for the job's own.
            keep(f"[{time.monotonic() - began:7.1f} s] {visible(line).replace(chr(10), chr(10) + INDENT)}\n")

        def say(line: str) -> None:
            count = COUNT.match(line)
            if not count or TRAILER.fullmatch(line):
                return write(line)
            done, total = map(int, count.groups())
            if total not in counting:
                counting[total] = Progress(write, total)
                counting[total].skip(done)  # when these began is not known
            counting[total](done, line)

        write(f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield say
            write(DONE)
        except UserError as error:
            write(str(error))
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            write("interrupted")
            sys.exit("error: interrupted: run snakemake again to go on")
        except Exception as error:
            keep(traceback.format_exc())
            if not hosts.writes():
                traceback.print_exc()
            sys.exit(visible(f"error: {type(error).__name__}: {error} (the whole story is in {log})"))


def _opened(log: str) -> IO[bytes]:
    """The log, unbuffered: what a full disk does not take is not tried again when it is closed."""
    with _sentences():
        try:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            return open(log, "wb", buffering=0)
        except OSError as error:
            raise UserError(unwritable(log, error)) from None


@contextmanager
def _sentences() -> Iterator[None]:
    """What fails before there is a log."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")


def _launch(snakemake: Any) -> None:
    """End this process with the job's exit status, where other processes are to do its work."""
    launcher = launch.asked(snakemake.rule, snakemake.resources)
    if launcher:
        # Snakemake's copy of the script, with all that it hands over written into it.
        script = Path(sys.argv[0]).absolute()
        sys.exit(launch.run(launch.commands(launcher, script, snakemake.resources, Path.cwd())))
