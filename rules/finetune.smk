"""Downstream tasks: super-resolution and DreamBooth, finetuned from the last weights of every model.

IN   models/{model}/{pretrain,published}.json, encoders, images
OUT  superres/{pairs,baselines}.json, dreambooth/subjects.json, models/{model}/{superres,class_images,dreambooth}.json
"""

dataset = config["dreambooth"] and config["dreambooth"]["folder"]
roots = (dataset, f"{dataset}/dataset") if dataset else ()
subject_folders = [f"{root}/{name}" for root in roots for name in config["dreambooth"]["subjects"]]
measured_scale = [] if config["autoencoder"]["scale"] else rules.latents.output[0]

if config["superres"]:

    rule pairs:
        """Degrade images into low-resolution ones, to train super-resolution on and to evaluate it with."""
        input:
            data=[] if config["superres"]["train"] and config["superres"]["evaluation"] else rules.data.output[0],
            photos=external(*(config["superres"][key] for key in ("train", "evaluation", "evaluation_lr"))),
            tokenizer=rules.tokenizer.output[0],
            autoencoder=rules.autoencoder.output[0],
            text=text_output,
            latents=measured_scale,
        output:
            f"{results}/superres/pairs.json",
        log:
            f"{results}/logs/pairs.log",
        benchmark:
            f"{results}/benchmarks/pairs.tsv"
        priority: 45
        resources:
            tpu=1,
        params:
            stages["pairs"],
        message:
            "degrade images for super-resolution"
        script:
            "../workflow_scripts/pairs.py"

    rule baselines:
        """Scores of bicubic upsampling, and of the autoencoder's own reconstruction: the floor of any model."""
        input:
            pairs=rules.pairs.output[0],
            clip=rules.clip.output[0],
            prompts=rules.prompts.output[0],
            weights=external(*measuring_weights),
        output:
            f"{results}/superres/baselines.json",
        log:
            f"{results}/logs/baselines.log",
        priority: 45
        resources:
            tpu=1,
        params:
            stages["baselines"],
        message:
            "score super-resolution's baselines"
        script:
            "../workflow_scripts/baselines.py"

    rule superres:
        """Finetune one model on super-resolution."""
        input:
            model=lambda wildcards: manifest_of(wildcards.model),
            pairs=rules.pairs.output[0],
        output:
            f"{results}/models/{{model}}/superres.json",
        log:
            f"{results}/logs/superres/{{model}}.log",
        benchmark:
            f"{results}/benchmarks/superres/{{model}}.tsv"
        priority: 60
        resources:
            tpu=1,
        params:
            lambda wildcards: stages.superres(wildcards.model),
        message:
            "finetune {wildcards.model} on super-resolution"
        script:
            "../workflow_scripts/superres.py"


if config["dreambooth"]:

    rule subjects:
        """Encode DreamBooth's subjects and their prompts, once for every model."""
        input:
            photos=external(*subject_folders),
            tokenizer=rules.tokenizer.output[0],
            autoencoder=rules.autoencoder.output[0],
            text=text_output,
            clip=rules.clip.output[0],
            latents=measured_scale,
        output:
            f"{results}/dreambooth/subjects.json",
        log:
            f"{results}/logs/subjects.log",
        priority: 45
        resources:
            tpu=1,
        params:
            stages["subjects"],
        message:
            "encode DreamBooth's subjects"
        script:
            "../workflow_scripts/subjects.py"

    rule class_images:
        """Have one model draw images of each subject's class, which finetuning is to preserve."""
        input:
            model=lambda wildcards: manifest_of(wildcards.model),
            subjects=rules.subjects.output[0],
        output:
            f"{results}/models/{{model}}/class_images.json",
        log:
            f"{results}/logs/class_images/{{model}}.log",
        benchmark:
            f"{results}/benchmarks/class_images/{{model}}.tsv"
        priority: 60
        resources:
            tpu=1,
        params:
            lambda wildcards: stages.class_images(wildcards.model),
        message:
            "{wildcards.model} draws images of the subjects' classes"
        script:
            "../workflow_scripts/class_images.py"

    rule dreambooth:
        """Finetune one model on every subject, one after the other."""
        input:
            model=lambda wildcards: manifest_of(wildcards.model),
            subjects=rules.subjects.output[0],
            class_images=rules.class_images.output[0] if config["dreambooth"]["prior"] else [],
        output:
            f"{results}/models/{{model}}/dreambooth.json",
        log:
            f"{results}/logs/dreambooth/{{model}}.log",
        benchmark:
            f"{results}/benchmarks/dreambooth/{{model}}.tsv"
        priority: 60
        resources:
            tpu=1,
        params:
            lambda wildcards: stages.dreambooth(wildcards.model),
        message:
            "finetune {wildcards.model} on DreamBooth's subjects"
        script:
            "../workflow_scripts/dreambooth.py"
