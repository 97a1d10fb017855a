"""Write Snakemake's own report, by a second Snakemake that reads the finished figures and runs nothing."""

import os
import subprocess
import sys
from pathlib import Path

from ldmscale.errors import UserError
from ldmscale.jobs import job
from ldmscale.provenance import atomic_path
from ldmscale.text import inert_scripts

with job(snakemake) as say, atomic_path(snakemake.output[0]) as temporary:
    # The merged config stands for whatever overlays this run was given. This run's profile must not be applied to the
    # second one, and this run's lock is expected.
    command = [sys.executable, "-m", "snakemake", "figures", "pages", "--cores", "1", "--nolock"]
    command += ["--snakefile", str(Path(snakemake.scriptdir).parent / "Snakefile"), "--workflow-profile", "none"]
    command += ["--configfile", snakemake.input.config, "--report", str(temporary)]
    environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          encoding="utf-8", errors="replace")  # fmt: skip
    say(done.stdout)
    if done.returncode:
        raise UserError(f"Snakemake could not write the report; {snakemake.log[0]} has its reasons")
    # Snakemake puts the names of all inputs, and what the captions say, into the page's scripts as they are.
    temporary.write_text(inert_scripts(temporary.read_text(encoding="utf-8")), encoding="utf-8")
