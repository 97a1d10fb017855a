"""Images and captions as record files.

IN   the sources that `data:` names
OUT  data/data.json (manifest), data/{train,tuning,heldout}-*
"""


rule data:
    """Draw or read the images and captions of every split."""
    input:
        external(
            *(
                s["annotations"]
                for s in (config["data"]["train"], config["data"]["evaluation"])
                if s and "annotations" in s
            )
        ),
    output:
        f"{results}/data/data.json",
    log:
        f"{results}/logs/data.log",
    benchmark:
        f"{results}/benchmarks/data.tsv"
    params:
        stages["data"],
    message:
        "read or draw the images and captions"
    script:
        "../workflow_scripts/data.py"


rule tokenizer:
    """Train the byte-level BPE tokenizer on the training captions, or take the published one that the config names."""
    input:
        data=[] if config["tokenizer"]["files"] else rules.data.output[0],
        files=external(config["tokenizer"]["files"]),
    output:
        f"{results}/encoders/tokenizer.json",
    log:
        f"{results}/logs/tokenizer.log",
    params:
        stages["tokenizer"],
    message:
        "read the tokenizer" if config["tokenizer"]["files"] else "train the tokenizer"
    script:
        "../workflow_scripts/tokenizer.py"
