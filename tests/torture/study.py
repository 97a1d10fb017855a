"""The study that is tortured, what an undisturbed run of it leaves, and its jobs, each to be repeated by itself."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from folders import RESULTS, Folder

# The smoke study's text-to-image part: two models, one sampler, two guidance weights, two figures and a table.
OTHERS = ("superres", "superres_training", "dreambooth", "codi", "codi_timesteps", "guided", "interpolation")
FEW = {
    **dict.fromkeys(("superres", "dreambooth", "codi", "guided", "interpolation")),
    "models": [{"name": "f4", "filters": 4}, {"name": "f8", "filters": 8}],
    "experiments": {**dict.fromkeys((*OTHERS, "training", "samplers", "same_cost")), "grid": {"steps": [4]}},
    "figures": {f"fig{n:02}": None for n in (*range(2, 9), *range(10, 25))}
    | dict.fromkeys(("dreambooth", "families", "fits", "latency", "validation")),
}  # fmt: skip
TARGETS = ["figures/fig01.png", "figures/fig09.png", "tables/table1.md"]
# What no two runs have alike: logs, measured seconds, when events happened, and a state, which a finished training
# reads no more.
UNLIKE = re.compile(r"^(logs|benchmarks)/|(metrics\.jsonl|timing\.json|state\.safetensors)$|events\.out|(^|/)\.")
PATIENCE = 900  # seconds after which something hangs


@dataclass(frozen=True)
class Job:
    """A job of the undisturbed run: the script as Snakemake wrote it, with all that it hands over, and its files."""

    rule: str
    script: Path
    inputs: list[str]
    outputs: list[str]
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.rule} ({Path(self.outputs[0]).parent.name}/{Path(self.outputs[0]).name})"


@dataclass(frozen=True)
class Reference:
    """The undisturbed run: its folder, the bytes of its files, what it took, its compiled programs, and its jobs."""

    folder: Folder
    targets: list[Path]
    files: dict[str, bytes]
    seconds: float
    cache: str
    jobs: list[Job]


def files_of(folder: Folder) -> dict[str, bytes]:
    """The bytes of every result that a run can repeat; of the table of scores all but measured seconds."""
    import pandas as pd

    root = folder / RESULTS
    names = [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file()]
    found = {name: (root / name).read_bytes() for name in names if not UNLIKE.search(name)}
    if "scores.parquet" in found:
        table = pd.read_parquet(root / "scores.parquet").drop(columns="seconds")
        found["scores.parquet"] = table.to_json().encode()
    return found


def undisturbed(place: Path, targets: list[str]) -> Reference:
    """Run the study twice, in one folder to compile its programs and in another to be timed; both must be equal."""
    paths, scripts = [RESULTS / target for target in targets], place / "scripts"
    first, again = Folder(place / "first"), Folder(place / "reference")
    for folder in (scripts, place / "cache"):
        folder.mkdir()
    recording = Path(__file__).with_name("recording")
    environment = again.environment() | {
        "TORTURE_SCRIPTS": str(scripts),
        "LDMSCALE_COMPILE_CACHE": str(place / "cache"),
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(recording), environment.get("PYTHONPATH", "")])
    for folder in (first, again):
        began = time.monotonic()
        command = folder.command(*paths, overlay=FEW)
        done = subprocess.run(command, cwd=folder.path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds = time.monotonic() - began
        if folder is first:
            shutil.rmtree(scripts)
            scripts.mkdir()
    files = files_of(again)
    assert files == files_of(first), "two undisturbed runs differ"
    return Reference(again, paths, files, seconds, str(place / "cache"), jobs_of(again, scripts))


def jobs_of(folder: Folder, scripts: Path) -> list[Job]:
    """The jobs whose scripts were kept."""
    return [_job(path, folder) for path in sorted(scripts.glob("*.py"))]


def _job(script: Path, folder: Folder) -> Job:
    """What a kept script says of its job."""
    preamble = script.read_text().partition("######## snakemake preamble end #########")[0]
    given: dict = {"__file__": str(script)}
    exec(preamble, given)
    found = given["snakemake"]
    benchmark = folder / str(found.log[0]).replace("/logs/", "/benchmarks/").replace(".log", ".tsv")
    seconds = float(benchmark.read_text().split("\n")[1].split("\t")[0]) if benchmark.exists() else 1.0
    return Job(found.rule, script, list(map(str, found.input)), list(map(str, found.output)), seconds)


def copy(reference: Reference, place: Path) -> Folder:
    """The finished study: linked, not copied, for a file is only ever replaced; logs are written in place, so left out.

    Snakemake's own records are copied. Compiled programs are the reference's.
    """
    source = reference.folder.path
    left_out = shutil.ignore_patterns("logs", "benchmarks", ".cache", ".snakemake", "events.out*", "metrics.jsonl")
    shutil.copytree(source, place, ignore=left_out, copy_function=os.link)
    shutil.copytree(source / ".snakemake", place / ".snakemake", ignore=shutil.ignore_patterns("log", "scripts"))
    config = place / "config.yaml"  # which Folder writes in place, and the overlay
    config.unlink()
    (place / "overlay.yaml").unlink()
    return Folder(place)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status (negative: the signal that ended it), and what it said."""

    status: int
    said: str

    @property
    def sentence(self) -> str | None:
        """The sentence with which it refused, if it did and that is all."""
        found = re.findall(r"^error: (.*)", self.said, re.M)
        return found[-1] if found and self.status != 0 and not self.traceback else None

    @property
    def traceback(self) -> bool:
        """Whether there is one in what it said, other than Python's own for a Ctrl-C while a job's modules load."""
        found = re.search(r"^Traceback \(", self.said, re.M)
        return found is not None and not re.search("^KeyboardInterrupt$", self.said, re.M)


class Running:
    """A job that runs in a fork of this process: what it imports is there already, all else it does itself."""

    def __init__(self, job: Job, folder: Folder, cache: str, before: Callable[[], None] = lambda: None):
        self._said, self._ended = tempfile.TemporaryFile(), None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._run(job, folder, cache, before))

    def _run(self, job: Job, folder: Folder, cache: str, before: Callable[[], None]) -> int:
        os.setsid()
        os.chdir(folder.path)
        for number in (1, 2):
            os.dup2(self._said.fileno(), number)
        os.environ["LDMSCALE_COMPILE_CACHE"] = cache
        os.environ["LDMSCALE_STORAGE"] = ""
        sys.argv = [str(job.script)]
        try:
            before()
            runpy.run_path(str(job.script), run_name="__main__")
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
            return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    def wait(self, seconds: float = PATIENCE) -> Ended | None:
        """How it ended, or None while it still runs after ``seconds``."""
        end = time.monotonic() + seconds
        while self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._said.seek(0)
                self._ended = Ended(os.waitstatus_to_exitcode(status), self._said.read().decode(errors="replace"))
            elif time.monotonic() > end:
                return None
            else:
                time.sleep(0.005)
        return self._ended

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and all that it has started."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def forget(job: Job, folder: Folder, thoroughly: bool = True) -> None:
    """Take away the outputs of ``job``, as Snakemake does before it runs one, and what it would find done."""
    root = folder / RESULTS
    for output in job.outputs:
        (folder / output).unlink(missing_ok=True)
    if not thoroughly:
        return
    first = Path(job.outputs[0])
    work = {
        "data": ["data/*.npz"],
        "latents": ["latents/[0-9]*/*", "latents/*.npy"],
        "generate": [f"{first.relative_to(RESULTS).parent}/**/sample.json"],
        "score": [f"{first.relative_to(RESULTS).parent}/**/score.json"],
        **dict.fromkeys(("pretrain", "autoencoder", "clip"), [f"{first.relative_to(RESULTS).with_suffix('')}/**/*"]),
    }  # fmt: skip
    for pattern in work.get(job.rule, ()):
        for path in root.glob(pattern):
            if path.is_file():
                path.unlink()
