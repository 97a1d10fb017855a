"""ldmscale: the scaling study of latent diffusion models, from images and captions to figures."""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.9")

sys.path.insert(0, str(Path(workflow.basedir) / "lib"))

from ldmscale.cells.cell import ON_PROMPTS
from ldmscale.cells.chain import BESIDE, SCORED_AGAINST, SHOWN, SHOWN_ALONE, SOURCES, Chain
from ldmscale.cells.lineage import MANIFESTS
from ldmscale.cells.plan import Plan
from ldmscale.config.check import check
from ldmscale.config.read import read_yaml
from ldmscale.config.study import Study
from ldmscale.errors import UserError


configfile: "config.yaml"


# One environment for every rule: environment.yml, or the lock file through `make env`.
container: "docker://python:3.11-slim"


try:
    for path in workflow.configfiles:
        read_yaml(Path(path))  # Snakemake takes the last of a key's values without a word
    check(config, Path(workflow.basedir) / "schemas" / "config.schema.json")
    study = Study(config)
    plan = Plan(study)
except UserError as error:
    raise WorkflowError(str(error)) from None

stages = Chain(plan)
results = f"results/{study.name}"
figure_names = [name for name, settings in config["figures"].items() if settings is not None]


wildcard_constraints:
    model="[A-Za-z0-9][A-Za-z0-9._-]*",
    figure="fig[0-9]{2}|dreambooth|latency|families|fits|validation",
    cells=r"task=[^/]+(/(model|weights|sampler|steps|cfg)=[^/]+)*",


report: "report/study.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/encoders.smk"
include: "rules/pretrain.smk"
include: "rules/finetune.smk"
include: "rules/distill.smk"
include: "rules/cells.smk"
include: "rules/figures.smk"
include: "rules/report.smk"


localrules:
    all,
    figures,
    cells,
    models,
    # Seconds each: on a cluster, quicker done than sent.
    costs,
    gather,
    figure,
    table1,
    summary,
    pages,
    explorer,


# Every tracked layer is a target, not the last one alone: Snakemake can take a job that failed after a change of its
# parameters for done when nothing asks for its output (rules/common.smk says what else guards against that).
rule all:
    """The whole study: models, cells, scores, figures, tables, summary and report."""
    default_target: True
    input:
        rules.models.input,
        sorted({manifest_of(cell.model, cell.task) for cell in plan.cells}),
        rules.cells.input,
        rules.figures.input,
        f"{results}/config.yaml",
        f"{results}/report.html",
        f"{results}/explorer.html",
    message:
        f"complete: everything is in {results}/"
