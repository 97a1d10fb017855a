"""Command lines that start a job on several hosts: rendered, run with stand-ins for srun and gcloud, stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers import REPO

from ldmscale import hosts
from ldmscale.errors import UserError
from ldmscale.jobs import job
from ldmscale.launch import READS, SPANS, Launch, asked, commands, run

FOLDER, SCRIPT = Path("/mnt/study"), Path("/mnt/study/.snakemake/scripts/tmpab12_z.pretrain.py")
PYTHON = "/mnt/study/.venv/bin/python"
ENVIRONMENT = {
    "JAX_PLATFORMS": "tpu,cpu",
    "LIBTPU_INIT_ARGS": "--a --b='c'",
    "XLA_FLAGS": "x",
    "HOME": "/root",
    "SECRET": "x",
}
POD = {"tpu_name": "slice", "zone": "us-east5-a", "project": "lab"}
GKE = {"cluster": "c", "zone": "us-east5-a", "project": "lab", "tpu_type": "v5p-128",
       "image": "us-docker.pkg.dev/lab/r/python:3.11"}  # fmt: skip
GOLDEN = Path(__file__).with_name("golden") / "xpk.yaml"


def render(launcher, resources, folder=FOLDER, script=SCRIPT, python=PYTHON):
    return commands(launcher, script, resources, folder, python, ENVIRONMENT)


def host(launch):
    """What a host's shell is to run."""
    return launch.start[0][-1].removeprefix("--command=")


def test_srun():
    (line,) = render("srun", {"nodes": 2, "_cores": 4}).start
    assert line[:-1] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=4",
                         "--kill-on-bad-exit=1", "bash", "-c"]  # fmt: skip
    assert line[-1].startswith(f"cd /mnt/study 2>/dev/null && [ -r {SCRIPT} ] && [ -x {PYTHON} ] || {{ echo ")
    library = REPO / "lib"
    assert line[-1].endswith(
        "exit 1; }; exec env JAX_PLATFORMS=tpu,cpu LDMSCALE_LAUNCHED=1 LIBTPU_INIT_ARGS='--a --b='\"'\"'c'\"'\"'' "
        f"PYTHONPATH={library} {PYTHON} {SCRIPT} launched"
    )


def test_pod_slice():
    launch = render("tpu-vm", POD)
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=us-east5-a", "--project=lab", "--worker=all",
           "--quiet"]  # fmt: skip
    assert launch.start[0][:-1] == launch.stop[:-1] == ssh
    assert host(launch) == render("srun", {"nodes": 1}).start[0][-1]
    line = r"/mnt/study/\.venv/bin/python /mnt/study/\.snakemake/scripts/tmpab12_z\.pretrain\.py launched"
    assert launch.stop[-1] == f"--command=pkill -TERM -f '^{line}$'"


def test_gke_is_submitted_waited_for_and_deleted():
    launch = render("xpk", GKE)
    (create, wait), place = launch.start, ["--cluster=c", "--zone=us-east5-a", "--project=lab"]
    name = create[3].removeprefix("--workload=")
    assert name.startswith("pretrain-") and len(name) <= 40
    assert create[:3] == ["xpk", "workload", "create"] and create[4:7] == place
    assert wait == ["xpk", "workload", "list", *place, f"--wait-for-job-completion={name}"]
    assert launch.stop == ["xpk", "workload", "delete", f"--workload={name}", *place, "--force"]
    other = render("xpk", GKE, script=SCRIPT.with_name("tmpother.class_images.py")).start[0][3]
    assert other.startswith("--workload=class-images-")


def test_gkes_manifest_is_the_golden_one(tmp_path):
    """LDMSCALE_XPK=path/to/xpk makes the file anew, offline; xpk's pins forbid it a place in this environment."""
    text = host(render("xpk", GKE)).replace(str(REPO), "/repository")
    if "LDMSCALE_XPK" in os.environ:
        create = render("xpk", GKE).start[0][1:-1]
        GOLDEN.parent.mkdir(exist_ok=True)
        subprocess.run([os.environ["LDMSCALE_XPK"], *create, f"--command={text}", "--dry-run",
                        f"--output-manifest-file={GOLDEN}"], check=True)  # fmt: skip
        GOLDEN.write_text("".join(f"{line.rstrip()}\n" for line in GOLDEN.read_text().splitlines()))
    (slice_,) = yaml.safe_load(GOLDEN.read_text())["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 16 and job["backoffLimit"] == 0  # retries are Snakemake's
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    (container,) = pod["containers"]
    assert container["image"] == GKE["image"]
    assert f"({text}) & PID=$!" in container["command"][-1]


@pytest.mark.parametrize(
    "rule, launch, said",
    [
        ("pretrain", "slurm", "rule pretrain: resource launch is 'slurm'; it must be one of srun, tpu-vm, xpk"),
        ("gather", "srun", "rule gather: resource launch is 'srun', but its work is done by one process"),
    ],
)
def test_what_cannot_be_launched_is_a_sentence(rule, launch, said, monkeypatch):
    monkeypatch.delenv("LDMSCALE_LAUNCHED", raising=False)
    with pytest.raises(UserError, match=said):
        asked(rule, {"launch": launch})


@pytest.mark.parametrize("launcher", READS)
def test_what_a_launcher_needs_is_asked_for(launcher):
    resources = {"srun": {"nodes": 2}, "tpu-vm": POD, "xpk": GKE}[launcher]
    for name in READS[launcher]:
        with pytest.raises(UserError, match=f"{name} is missing$"):
            render(launcher, {k: v for k, v in resources.items() if k != name})
        with pytest.raises(UserError, match=r"is missing: \$NAME is not set in the environment"):
            render(launcher, {**resources, name: "$NAME"})


def test_only_a_job_that_is_not_yet_spread_is_launched(monkeypatch):
    monkeypatch.delenv("LDMSCALE_LAUNCHED", raising=False)
    assert asked("pretrain", {}) is None and asked("gather", {}) is None
    assert asked("pretrain", {"launch": "srun"}) == "srun"
    monkeypatch.setenv("LDMSCALE_LAUNCHED", "1")
    assert asked("pretrain", {"launch": "srun"}) is None


def test_the_rules_that_span_hosts_have_scripts():
    assert all((REPO / "workflow_scripts" / f"{rule}.py").is_file() for rule in SPANS)


# ---------------------------------------------------------------- run, with stand-ins that start two processes here

JOB = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from ldmscale.jobs import job
index = os.environ.get("WORKER", "none")
resources = {"launch": "tpu-vm", "tpu_name": "slice", "zone": "z", "project": "p"}
os.environ.pop("LDMSCALE_HOSTS", None)
if index != "none":
    os.environ["LDMSCALE_HOSTS"] = "1"    # each of them alone: what is tested is that they are started
with job(SimpleNamespace(log=["log"], threads=1, rule="pretrain", resources=resources)) as say:
    say(f"worker {index}")
    Path(f"ran-{index}").touch()
    if Path("wait").exists():
        import signal
        signal.signal(signal.SIGTERM, lambda *_: (Path(f"stopped-{index}").touch(), os._exit(75)))
        Path(f"ready-{index}").touch()
        time.sleep(60)
    if index == "1" and Path("fail").exists():
        sys.exit(3)
"""
GCLOUD = """#!/bin/bash
echo "$*" >> calls
for last; do :; done
for worker in 0 1; do WORKER=$worker bash -c "${last#--command=}" & pids+=($!); done
status=0
for pid in "${pids[@]}"; do wait $pid || status=$?; done
exit $status
"""


@pytest.fixture
def pod(tmp_path):
    """A folder with a script and a gcloud whose two workers are processes of this machine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gcloud").write_text(GCLOUD)
    (tmp_path / "bin" / "gcloud").chmod(0o755)
    (tmp_path / f"tmp{os.getpid()}_{tmp_path.name}.pretrain.py").write_text(JOB)
    return tmp_path


def start(pod):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LDMSCALE_", "XLA_"))}
    environment |= {"PATH": f"{pod / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(REPO / "lib")}
    (script,) = pod.glob("tmp*.pretrain.py")
    return subprocess.Popen([sys.executable, script.name], cwd=pod, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_job_runs_on_every_worker_and_its_status_comes_back(pod):
    started = start(pod)
    assert started.communicate()[1] == "" and started.returncode == 0
    assert {path.name for path in pod.glob("ran-*")} == {"ran-0", "ran-1"}  # and not in the process that was started
    assert (pod / "log").read_text().rstrip().endswith("done")
    (pod / "fail").touch()
    failed = start(pod)
    failed.communicate()
    assert failed.returncode == 3


def test_a_job_that_is_stopped_ends_on_every_worker(pod):
    (pod / "wait").touch()
    started = start(pod)
    limit = time.monotonic() + 60
    while len(list(pod.glob("ready-*"))) < 2:
        assert time.monotonic() < limit and started.poll() is None
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    started.communicate()
    assert started.returncode == 75
    assert len(list(pod.glob("stopped-*"))) == 2


def test_of_several_hosts_the_first_alone_writes_the_log(tmp_path, monkeypatch, capsys):
    log = tmp_path / "log"
    for index in (1, 0):
        monkeypatch.setattr(hosts, "_place", (index, 2))
        with pytest.raises(SystemExit, match="ZeroDivisionError"):
            with job(SimpleNamespace(log=[str(log)], threads=1, rule="pretrain", resources={})):
                print(1 / 0)
        assert log.exists() == (index == 0)
        assert ("Traceback" in capsys.readouterr().err) == (index == 1)  # where else would it be said
    assert "Traceback" in log.read_text()


def test_a_host_that_does_not_see_the_working_folder_says_so(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    script = here / "tmp1.pretrain.py"
    text = host(commands("srun", script, {"nodes": 2}, here, sys.executable, {}))
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"does not see {here}, tmp1.pretrain.py in it, or {sys.executable}: the working folder" in done.stderr
    script.write_text("import os; print(os.environ['LDMSCALE_LAUNCHED'])")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n")


def test_a_launcher_that_is_not_installed_is_a_sentence_and_a_signal_a_status():
    with pytest.raises(UserError, match="no-such-launcher is not installed here"):
        run(Launch([["no-such-launcher"]]))
    assert run(Launch([["bash", "-c", "kill -9 $$"]])) == 137
    assert run(Launch([["true"], ["bash", "-c", "exit 75"]])) == 75
    assert run(Launch([["bash", "-c", "exit 2"], ["true"]])) == 2
