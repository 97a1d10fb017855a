"""What the rules share: how params reach the jobs, and how a stale result is made impossible.

Every rule gets as `params` the part of the config it depends on together with the digests of the stages it reads
(ldmscale.cells.chain), which follow from the config before anything runs. So a change anywhere upstream changes the
params of every rule downstream, and a figure can never pass for current because a job in between has failed.
"""

import os

# What of a program's memory is over 64 MB, with networks of some ten million parameters, comes anew from the system at
# each call: in pages of 2 MB a training step of 39M takes a tenth less.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

# For ldmscale.storage in every job: where files are kept changes no result, so it is in no rule's params.
os.environ.update(LDMSCALE_STORAGE=config["storage"] or "")


def external(*paths):
    """Files from outside that a rule reads, as inputs where they exist; a script says what is missing otherwise.

    Their bytes are part of the params, so their times say nothing: a study copied or checked out anew stays as it is.
    So does nothing depend on those that are left out, whose names Snakemake would read as patterns: a photo may be
    called {a}.png or <b>.png.
    """
    there = [path for path in paths if path and os.path.exists(path)]
    folders = [path for path in there if os.path.isdir(path)]
    inside = [entry.path for path in folders for entry in os.scandir(path) if entry.is_file()]
    files = (*(path for path in there if path not in folders), *sorted(inside))
    return [ancient(path) for path in files if not set("{}<>") & set(path)]


def planned(function):
    """A cell path that the study does not know is a sentence, not a traceback."""

    def checked(wildcards):
        try:
            return function(wildcards.cells)
        except UserError as error:
            raise WorkflowError(str(error)) from None

    return checked


def manifest_of(model, task="t2i"):
    """The manifest of the model's weights for a task."""
    return f"{results}/models/{model}/{study.stage(task, model)}.json"


first_cell = planned(lambda cells: plan.under(cells)[0])


def model_of(wildcards):
    cell = first_cell(wildcards)
    return manifest_of(cell.model, cell.task)


# What the stages that cells draw from, and are scored against, write.
SOURCE_FILES = {stage: f"{results}/{file}" for stage, file in MANIFESTS.items()}


def drawn_from(wildcards):
    return SOURCE_FILES[SOURCES[first_cell(wildcards).task]]


def scored_against(wildcards):
    return [SOURCE_FILES[stage] for stage in SCORED_AGAINST[first_cell(wildcards).task]]


lpips = config["metrics"]["lpips"]
measuring_weights = [
    config["metrics"]["inception"],
    config["metrics"]["dino"],
    config["metrics"]["dinov2"],
    *(path for files in lpips.values() if files for path in files.values()),
]


def shown_cells(wildcards):
    """The generation jobs whose pictures a figure shows; figures without prompts show curves alone."""
    settings = config["figures"][wildcards.figure]
    if not {"prompt", "prompts", "rows", "pair", "patches"} & set(settings):
        return []
    experiments = [settings[key] for key in SHOWN if key in settings]
    jobs = {plan.generation_job(cell) for name in experiments for cell in plan.experiments[name]}
    return [f"{results}/cells/{job}/generated.json" for job in sorted(jobs)]


def shown_beside(wildcards):
    """The stages that a figure shows beside its cells, or alone."""
    settings = config["figures"][wildcards.figure]
    if "experiment" not in settings:
        return [SOURCE_FILES[stage] for stage in SHOWN_ALONE.get(wildcards.figure, ())]
    return [SOURCE_FILES[stage] for stage in BESIDE.get(plan.experiments[settings["experiment"]][0].task, ())]
