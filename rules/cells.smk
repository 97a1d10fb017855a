"""Cells: the grid of (task, model, weights, sampler, steps, cfg), generated, scored, gathered.

A job is a prefix of its cells' paths, and so is a target: `snakemake results/<study>/cells/<cell>/scores.json` makes
one cell, with as much of the path as you like.

IN   models/{model}/{pretrain,published,superres,dreambooth,codi,guided}.json, encoders, prompts, reference, superres, dreambooth
OUT  cells/{cells}/generated.json, cells/{cells}/scores.json, timing.json, scores.parquet
"""


rule generate:
    """Sample the images of a job's cells, skipping those that exist."""
    input:
        model=model_of,
        autoencoder=rules.autoencoder.output[0],
        latents=[] if config["autoencoder"]["scale"] else rules.latents.output[0],
        draws=drawn_from,
    output:
        f"{results}/cells/{{cells}}/generated.json",
    log:
        f"{results}/logs/generate/{{cells}}.log",
    benchmark:
        f"{results}/benchmarks/generate/{{cells}}.tsv"
    # Above pretraining: a trained model is sampled at once.
    priority: 70
    resources:
        tpu=1,
    params:
        planned(stages.generate),
    message:
        "generate {wildcards.cells}"
    script:
        "../workflow_scripts/generate.py"


rule score:
    """Features and scores of a job's cells, skipping those that are scored."""
    input:
        generated=planned(
            lambda cells: [f"{results}/cells/{job}/generated.json" for job in plan.generation_jobs(cells)]
        ),
        clip=rules.clip.output[0],
        against=scored_against,
        weights=external(*measuring_weights),
    output:
        f"{results}/cells/{{cells}}/scores.json",
    log:
        f"{results}/logs/score/{{cells}}.log",
    benchmark:
        f"{results}/benchmarks/score/{{cells}}.tsv"
    priority: 80
    resources:
        tpu=1,
    params:
        planned(stages.score),
    message:
        "score {wildcards.cells}"
    script:
        "../workflow_scripts/score.py"


rule costs:
    """Parameters and FLOPs of every network, counted from its program; needs nothing, so it fills a gap."""
    output:
        f"{results}/costs.json",
    log:
        f"{results}/logs/costs.log",
    priority: 5
    params:
        stages["costs"],
    message:
        "count what every network costs"
    script:
        "../workflow_scripts/costs.py"


rule timing:
    """Seconds that every network takes on one thread (or the accelerator) of this machine, with nothing beside it."""
    input:
        # What it waits for; nothing of it is read. Not `ancient`: where such an input is made anew, Snakemake passes over
        # a change of params.
        [f"{results}/cells/{job}/scores.json" for job in plan.scoring_jobs()],
    output:
        f"{results}/timing.json",
    log:
        f"{results}/logs/timing.log",
    benchmark:
        f"{results}/benchmarks/timing.tsv"
    # The whole machine, so that nothing runs beside it; elsewhere (an executor without cores of its own) what
    # `--set-threads timing=N` says.
    threads: workflow.resource_settings.cores or 1
    resources:
        tpu=1,
    params:
        stages["timing"],
    message:
        "measure how long every network takes"
    script:
        "../workflow_scripts/timing.py"


rule gather:
    """The tidy table: one row a cell and split; with several training seeds beside it one row a training."""
    input:
        scores=[f"{results}/cells/{job}/scores.json" for job in plan.scoring_jobs()],
        costs=rules.costs.output[0],
        timing=rules.timing.output[0],
    output:
        **({"trainings": f"{results}/trainings.parquet"} if config["training_seeds"] > 1 else {}),
        scores=f"{results}/scores.parquet",
    log:
        f"{results}/logs/gather.log",
    params:
        stages.scores(),
    message:
        "gather the scores"
    script:
        "../workflow_scripts/gather.py"


rule cells:
    """Every cell of the study, generated and scored, and the table of scores."""
    input:
        [f"{results}/cells/{job}/generated.json" for job in plan.generation_jobs()],
        rules.gather.input,
        rules.gather.output,
