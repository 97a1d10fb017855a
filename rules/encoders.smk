"""Autoencoder and CLIP, and everything that passes through them once.

IN   data/data.json, encoders/tokenizer.json, published weights
OUT  encoders/{autoencoder,clip,text_encoder}.json, latents/latents.json, prompts/prompts.json, reference/reference.json
"""


rule autoencoder:
    """Train the KL autoencoder, or take the weights that the config names."""
    input:
        data=rules.data.output[0],
        weights=external(config["autoencoder"]["weights"]),
        photos=external(config["autoencoder"]["photos"]),
    output:
        f"{results}/encoders/autoencoder.json",
    log:
        f"{results}/logs/autoencoder.log",
    benchmark:
        f"{results}/benchmarks/autoencoder.tsv"
    priority: 90
    resources:
        tpu=1,
    params:
        stages["autoencoder"],
    message:
        "check the autoencoder" if config["autoencoder"]["weights"] else "train the autoencoder"
    script:
        "../workflow_scripts/autoencoder.py"


rule clip:
    """Train CLIP (image and text tower), or take the weights that the config names."""
    input:
        data=rules.data.output[0],
        tokenizer=rules.tokenizer.output[0],
        weights=external(config["clip"]["weights"]),
    output:
        f"{results}/encoders/clip.json",
    log:
        f"{results}/logs/clip.log",
    benchmark:
        f"{results}/benchmarks/clip.tsv"
    priority: 90
    resources:
        tpu=1,
    params:
        stages["clip"],
    message:
        "check CLIP" if config["clip"]["weights"] else "train CLIP"
    script:
        "../workflow_scripts/clip.py"


if config["text_encoder"]:

    rule text_encoder:
        """Check the published text encoder that the config names."""
        input:
            tokenizer=rules.tokenizer.output[0],
            weights=external(config["text_encoder"]["weights"]),
        output:
            f"{results}/encoders/text_encoder.json",
        log:
            f"{results}/logs/text_encoder.log",
        params:
            stages["text_encoder"],
        message:
            "check the text encoder"
        script:
            "../workflow_scripts/text_encoder.py"


text_output = (rules.text_encoder if config["text_encoder"] else rules.clip).output[0]


if parts > 1:

    rule latents_part:
        """Encode every so many shards of the training images and captions, beside the other parts."""
        input:
            data=rules.data.output[0],
            tokenizer=rules.tokenizer.output[0],
            autoencoder=rules.autoencoder.output[0],
            text=text_output,
        output:
            f"{results}/latents/part-{{part}}-of-{{parts}}.json",
        log:
            f"{results}/logs/latents-{{part}}-of-{{parts}}.log",
        priority: 90
        resources:
            tpu=1,
        params:
            stages["latents"],
        message:
            "encode part {wildcards.part} of {wildcards.parts} of the training images and captions"
        script:
            "../workflow_scripts/latents.py"


rule latents:
    """Encode the training images and captions once, for every model to train on."""
    input:
        parts=[f"{results}/latents/part-{part}-of-{parts}.json" for part in range(parts) if parts > 1],
        data=rules.data.output[0],
        tokenizer=rules.tokenizer.output[0],
        autoencoder=rules.autoencoder.output[0],
        text=text_output,
    output:
        f"{results}/latents/latents.json",
    log:
        f"{results}/logs/latents.log",
    benchmark:
        f"{results}/benchmarks/latents.tsv"
    priority: 90
    resources:
        tpu=1,
    params:
        stages["latents"],
    message:
        "encode the training images and captions"
    script:
        "../workflow_scripts/latents.py"


rule prompts:
    """Encode the prompts of every cell: the gallery, and the tuning and held-out captions."""
    input:
        data=rules.data.output[0],
        tokenizer=rules.tokenizer.output[0],
        clip=rules.clip.output[0],
        text=text_output,
    output:
        f"{results}/prompts/prompts.json",
    log:
        f"{results}/logs/prompts.log",
    resources:
        tpu=1,
    params:
        stages["prompts"],
    message:
        "encode the prompts"
    script:
        "../workflow_scripts/prompts.py"


rule reference:
    """Features of the real tuning and held-out images, which FID and its like compare with."""
    input:
        data=rules.data.output[0],
        clip=rules.clip.output[0],
        weights=external(config["metrics"]["inception"], config["metrics"]["dinov2"]),
    output:
        f"{results}/reference/reference.json",
    log:
        f"{results}/logs/reference.log",
    resources:
        tpu=1,
    params:
        stages["reference"],
    message:
        "features of the real images"
    script:
        "../workflow_scripts/reference.py"
