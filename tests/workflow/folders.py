"""A folder to run the workflow in, as a user does: Snakemake in a process of its own, the checkout untouched."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml
from helpers import REPO, merged

from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study

RESULTS = Path("results/smoke")


@dataclass(frozen=True)
class Done:
    """A finished command: its exit status and everything that it said."""

    status: int
    said: str

    @property
    def jobs(self) -> Counter:
        """The table of job counts, without its total."""
        _, found, table = self.said.partition("Job stats:")
        if not found:
            return Counter()
        lines = table.partition("total")[0].splitlines()
        return Counter({name: int(n) for name, n in (line.split() for line in lines if line[-1:].isdigit())})

    @property
    def messages(self) -> list[str]:
        """What each job says that it does, sorted."""
        return sorted(set(re.findall(r"^Job \d+: (.*)$", self.said, re.M)))


class Folder:
    """A working directory with the repository's config in it."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / "config.yaml", path)

    def __truediv__(self, below) -> Path:
        return self.path / below

    def copy(self, path: Path) -> "Folder":
        """This folder at another place, times of files included: what Snakemake knows of it holds there too."""
        shutil.copytree(self.path, path)
        return Folder(path)

    def command(self, *arguments, overlay=None, config="smoke.yaml") -> list[str]:
        """``overlay`` is merged over the config: a dict, or YAML text."""
        files = [str(REPO / "configs" / config)] if config else []
        if overlay is not None:
            (self / "overlay.yaml").write_text(overlay if isinstance(overlay, str) else yaml.safe_dump(overlay))
            files.append("overlay.yaml")
        start = [sys.executable, "-m", "snakemake", *map(str, arguments), "--snakefile", str(REPO / "Snakefile")]
        return [*start, "--cores", "2", *(["--configfile", *files] if files else [])]

    def environment(self) -> dict[str, str]:
        """Without the session's own: a job sets XLA's flags itself."""
        return {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "SNAKEMAKE_", "NPROC"))}

    def run(self, *arguments, status=0, **config) -> Done:
        """Run Snakemake on targets (or with options); ``status`` None takes any exit but success."""
        done = subprocess.run(
            self.command(*arguments, **config), cwd=self.path, env=self.environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == status if status is not None else done.returncode != 0, done.stdout
        return Done(done.returncode, done.stdout)

    def dry(self, *arguments, **config) -> Done:
        return self.run("-n", *arguments, **config)

    def refused(self, *arguments, **config) -> str:
        """What a run that must fail says; never a traceback."""
        said = self.run(*arguments, status=None, **config).said
        assert "Traceback (most recent call last)" not in said, said
        return said

    def mtimes(self, pattern: str) -> dict[str, int]:
        """Times of the files under the results that match."""
        return {str(p.relative_to(self.path)): p.stat().st_mtime_ns for p in (self / RESULTS).glob(pattern)}


def chain_of(*overlays) -> Chain:
    """What the smoke study's config asks for."""
    return Chain(Plan(Study(merged("smoke.yaml", *overlays))))
