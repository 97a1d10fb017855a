"""The family: one pretraining job a model.

IN   latents/latents.json
OUT  models/{model}/pretrain.json (manifest), models/{model}/pretrain/step-*.safetensors
"""


rule pretrain:
    """Train one U-Net of the family on text-to-image, keeping its weights at the checkpoints."""
    input:
        latents=rules.latents.output[0],
    output:
        f"{results}/models/{{model}}/pretrain.json",
    log:
        f"{results}/logs/pretrain/{{model}}.log",
    benchmark:
        f"{results}/benchmarks/pretrain/{{model}}.tsv"
    priority: 50
    resources:
        tpu=1,
    params:
        lambda wildcards: stages.pretrain(wildcards.model),
    message:
        "pretrain {wildcards.model}"
    script:
        "../workflow_scripts/pretrain.py"


rule models:
    """Every model of the family, trained."""
    input:
        expand(rules.pretrain.output, model=study.models),
