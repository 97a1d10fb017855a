"""Snakemake as a user calls it, in a clone of the workflow: no results, no other run's lock, no user's profiles."""

import os
import re
import resource
import shutil
import subprocess
import sys

from helpers import REPO

WORKFLOW = (
    "Snakefile",
    "config.yaml",
    "configs",
    "lib",
    "profiles",
    "report",
    "rules",
    "schemas",
    "tpu",
    "workflow_scripts",
)


def make_clone(tmp_path_factory):
    """The workflow's files alone, symbolic links kept as links: for a fixture of module scope."""
    folder = tmp_path_factory.mktemp("clone")
    for name in WORKFLOW:
        source = REPO / name
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name, follow_symlinks=False)
    return folder


def dry_run(clone, *arguments):
    """Output of ``snakemake *arguments`` in ``clone``, and the CPU seconds that it took."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
    environment["XDG_CONFIG_HOME"] = str(clone / "nobody")  # profiles of the user who runs the tests
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "snakemake", *arguments]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=900)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout + done.stderr, seconds


def jobs(output):
    """Number of jobs of each rule, from the table that Snakemake prints."""
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}
