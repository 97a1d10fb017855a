"""The family: one pretraining job a model, or its published weights checked.

IN   latents/latents.json, published weights; for validation data, encoders and prompts
OUT  models/{model}/pretrain.json (manifest), models/{model}/pretrain/step-*.safetensors; models/{model}/published.json;
     models/{model}/validation.npy, validation.json
"""


rule pretrain:
    """Train one U-Net of the family on text-to-image, keeping its weights at the checkpoints."""
    input:
        latents=rules.latents.output[0],
        autoencoder=rules.autoencoder.output[0],
    output:
        f"{results}/models/{{model}}/pretrain.json",
    log:
        f"{results}/logs/pretrain/{{model}}.log",
    benchmark:
        f"{results}/benchmarks/pretrain/{{model}}.tsv"
    # The dearest first: begun last, it would be trained and sampled alone at the end.
    priority: lambda wildcards: 50 + list(study.members).index(study.models[wildcards.model].member)
    resources:
        tpu=1,
    params:
        lambda wildcards: stages.pretrain(wildcards.model),
    message:
        "pretrain {wildcards.model}"
    script:
        "../workflow_scripts/pretrain.py"


rule published:
    """Check the published weights of a member that is not trained here."""
    input:
        lambda wildcards: external(study.models[wildcards.model].weights),
    output:
        f"{results}/models/{{model}}/published.json",
    log:
        f"{results}/logs/published/{{model}}.log",
    params:
        lambda wildcards: stages.published(wildcards.model),
    message:
        "check the published weights of {wildcards.model}"
    script:
        "../workflow_scripts/published.py"


rule validation:
    """The denoising loss of every model's checkpoints on held-out images, noise level by noise level."""
    input:
        models=[manifest_of(model) for model in study.members],
        data=rules.data.output[0],
        autoencoder=rules.autoencoder.output[0],
        prompts=rules.prompts.output[0],
        latents=[] if config["autoencoder"]["scale"] else rules.latents.output[0],
    output:
        f"{results}/validation.json",
    log:
        f"{results}/logs/validation.log",
    benchmark:
        f"{results}/benchmarks/validation.tsv"
    # It runs alone if it is left to the end.
    priority: 65
    resources:
        tpu=1,
    params:
        stages["validation"],
    message:
        "measure validation losses"
    script:
        "../workflow_scripts/validation.py"


rule models:
    """Every model of the family, trained or published."""
    input:
        [manifest_of(model) for model in study.models],
