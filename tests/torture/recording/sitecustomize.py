"""On the path of jobs that are to be repeated: keeps the script that Snakemake writes for each, and deletes."""

import os
import shutil
import sys

script = sys.orig_argv[1] if len(sys.orig_argv) > 1 else ""
if ".snakemake/scripts" in script:
    shutil.copy(script, os.environ["TORTURE_SCRIPTS"])
