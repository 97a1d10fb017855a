"""Distilled models: text-to-image in fewer steps, from the last weights of a model.

IN   models/{model}/{pretrain,published}.json, latents/latents.json
OUT  models/{model}/{codi,guided}.json
"""

if config["codi"]:

    rule codi:
        """Distil one model by conditional consistency (CoDi)."""
        input:
            model=lambda wildcards: manifest_of(wildcards.model),
            latents=rules.latents.output[0],
        output:
            f"{results}/models/{{model}}/codi.json",
        log:
            f"{results}/logs/codi/{{model}}.log",
        benchmark:
            f"{results}/benchmarks/codi/{{model}}.tsv"
        priority: 60
        resources:
            tpu=1,
        params:
            lambda wildcards: stages.codi(wildcards.model),
        message:
            "distil {wildcards.model} by conditional consistency"
        script:
            "../workflow_scripts/codi.py"


if config["guided"]:

    rule guided:
        """Distil the guidance of one model into a single evaluation, then halve its steps, student by student."""
        input:
            model=lambda wildcards: manifest_of(wildcards.model),
            latents=rules.latents.output[0],
        output:
            f"{results}/models/{{model}}/guided.json",
        log:
            f"{results}/logs/guided/{{model}}.log",
        benchmark:
            f"{results}/benchmarks/guided/{{model}}.tsv"
        priority: 60
        resources:
            tpu=1,
        params:
            lambda wildcards: stages.guided(wildcards.model),
        message:
            "distil {wildcards.model} with its guidance"
        script:
            "../workflow_scripts/guided.py"
