"""A job on several hosts: the command lines that run its script on all of them, as its resources say.

A profile names a launcher for some of the rules that can span hosts (``SPANS``), with what it needs to know::

    set-resources:
      pretrain: {launch: srun, nodes: 4}

Resources are no cause to run a job again: how a result is computed does not change it. Snakemake starts such a job's
script once, as any other; that process runs the very same script file on every host and ends with its exit status. What
runs on the hosts knows by ``LDMSCALE_LAUNCHED`` that it is one of them. Without ``launch`` a job is one process.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmscale.errors import UserError
from ldmscale.hosts import LAUNCHED

MARK = "launched"  # an argument of the script, to tell its processes from the one that started them
SPANS = ("pretrain", "superres", "class_images", "dreambooth", "codi", "guided", "generate")
# What each launcher reads of a job's resources: all are needed.
READS = {
    "srun": ("nodes",),
    "tpu-vm": ("tpu_name", "zone", "project"),
    "xpk": ("cluster", "zone", "project", "tpu_type", "image"),
}
# Of the environment, what follows a job to hosts that do not inherit it.
CARRIED = ("GCSFS_", "GLIBC_", "GOOGLE_", "JAX_", "LDMSCALE_", "LIBTPU_")


@dataclass(frozen=True)
class Launch:
    """``start``: commands to run one after the other, the last of which ends when the job does, with its status.

    ``stop`` ends the job, where that is not done by a signal to the running command.
    """

    start: list[list[str]]
    stop: list[str] | None = None


def asked(rule: str, resources: Mapping[str, Any]) -> str | None:
    """The launcher of a job of ``rule``, None where this process itself is to do its work.

    Raises:
        UserError: there is no such launcher, or the rule's work is done by one process.
    """
    launcher = resources.get("launch")
    if not launcher or os.environ.get(LAUNCHED):
        return None
    if launcher not in READS:
        raise UserError(f"rule {rule}: resource launch is '{launcher}'; it must be one of {', '.join(READS)}")
    if rule not in SPANS:
        raise UserError(
            f"rule {rule}: resource launch is '{launcher}', but its work is done by one process: take it out of the "
            f"profile's set-resources; rules that span hosts are {', '.join(SPANS)}"
        )
    return launcher


def commands(launcher: str, script: Path, resources: Mapping[str, Any], folder: Path, python: str = sys.executable,
             environment: Mapping[str, str] | None = None) -> Launch:  # fmt: skip
    """The command lines that run ``script`` with ``python`` on every host, in ``folder``, which all of them share.

    ``resources`` are the job's, see ``READS``. Of ``environment`` (default: this process's) ``CARRIED`` goes along.

    Raises:
        UserError: a resource that the launcher needs is missing, or names an environment variable that is not set.
    """
    here = os.environ if environment is None else environment
    values = {}
    for name in READS[launcher]:
        values[name] = str(resources.get(name) or "")
        if not values[name] or values[name].startswith("$"):
            unset = f": {values[name]} is not set in the environment" if values[name] else ""
            raise UserError(
                f"launch: {launcher} needs {', '.join(READS[launcher])} among the job's resources; {name} is missing"
                f"{unset}"
            )
    every = _on_every_host(script, folder, python, {k: v for k, v in here.items() if k.startswith(CARRIED)})
    if launcher == "srun":
        nodes, cores = values["nodes"], resources.get("cpus_per_task") or resources.get("_cores") or 1
        # A job step within Snakemake's own allocation; a host that fails ends the others, which would wait for it.
        start = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cores}",
                 "--kill-on-bad-exit=1"]  # fmt: skip
        return Launch([[*start, "bash", "-c", every]])
    if launcher == "tpu-vm":
        ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", values["tpu_name"], f"--zone={values['zone']}",
               f"--project={values['project']}", "--worker=all", "--quiet"]  # fmt: skip
        # What ssh has started does not end with it. The script's name is this attempt's alone; the whole of a command
        # line has to match, which that of the ssh, the shells and the process that started all this do not.
        pattern = re.sub(r"([][.+*?(){}|^$\\])", r"\\\1", f"{python} {script} {MARK}")
        return Launch([[*ssh, f"--command={every}"]], [*ssh, f"--command=pkill -TERM -f {shlex.quote(f'^{pattern}$')}"])
    # Names are lower-case letters, digits and hyphens, up to 40; another attempt's is another.
    rule = script.name.split(".")[-2].replace("_", "-") if script.name.count(".") > 1 else "job"
    workload = f"{rule}-{hashlib.sha256(script.name.encode()).hexdigest()[:8]}"
    place = [f"--cluster={values['cluster']}", f"--zone={values['zone']}", f"--project={values['project']}"]
    create = ["xpk", "workload", "create", f"--workload={workload}", *place, f"--tpu-type={values['tpu_type']}",
              "--num-slices=1", f"--docker-image={values['image']}", f"--command={every}"]  # fmt: skip
    wait = ["xpk", "workload", "list", *place, f"--wait-for-job-completion={workload}"]
    return Launch([create, wait], ["xpk", "workload", "delete", f"--workload={workload}", *place, "--force"])


def _on_every_host(script: Path, folder: Path, python: str, environment: Mapping[str, str]) -> str:
    """What a host's shell runs: the script, or a sentence if the host does not see it."""
    there = f"cd {shlex.quote(str(folder))} 2>/dev/null && [ -r {shlex.quote(str(script))} ]"
    there += f" && [ -x {shlex.quote(python)} ]"
    said = shlex.quote(
        f" does not see {folder}, {script.name} in it, or {python}: the working folder and the Python environment must "
        "be on a disk that all hosts share, under the same path"
    )
    library = Path(__file__).parents[1]
    settings = {**environment, LAUNCHED: "1", "PYTHONPATH": str(library)}
    assigned = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(settings.items()))
    refuse = f'echo "error: $(hostname)"{said} >&2; exit 1'
    return f"{there} || {{ {refuse}; }}; exec env {assigned} {shlex.quote(python)} {shlex.quote(str(script))} {MARK}"


def run(launch: Launch) -> int:
    """Run ``launch`` to its end and return its exit status.

    SIGTERM and SIGUSR1, by which a scheduler says that the job has to end, reach the job; its own status says whether
    it has saved what it had. A command that a signal ended has the status of a shell's, 128 and its number.
    """
    for command in launch.start:
        try:
            child = subprocess.Popen(command)
        except FileNotFoundError:
            raise UserError(f"{command[0]} is not installed here: it is what starts a job on several hosts") from None
        before = {number: signal.signal(number, _passed_on(child, launch.stop)) for number in _PASSED}
        try:
            status = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if status:
            break
    return status if status >= 0 else 128 - status


_PASSED = (signal.SIGTERM, signal.SIGUSR1)


def _passed_on(child: subprocess.Popen, stop: Sequence[str] | None) -> Any:
    def handler(number: int, _: Any) -> None:
        if stop:
            subprocess.Popen(stop)
        else:
            child.send_signal(number)

    return handler
