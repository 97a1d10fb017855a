"""Images and captions as record files.

IN   the sources that `data:` names
OUT  data/data.json (manifest), data/{train,tuning,heldout}-*
"""

parts = config["data"]["jobs"]
sources_listed = external(
    *(s["annotations"] for s in (config["data"]["train"], config["data"]["evaluation"]) if s and "annotations" in s)
)

if parts > 1:

    rule data_part:
        """Write every so many of the record files, beside the other parts."""
        input:
            sources_listed,
        output:
            f"{results}/data/part-{{part}}-of-{{parts}}.json",
        log:
            f"{results}/logs/data-{{part}}-of-{{parts}}.log",
        threads: 16
        params:
            stages["data"],
        message:
            "write the record files of part {wildcards.part} of {wildcards.parts}"
        script:
            "../workflow_scripts/data.py"


rule data:
    """Draw or read the images and captions of every split."""
    input:
        sources_listed,
        parts=[f"{results}/data/part-{part}-of-{parts}.json" for part in range(parts) if parts > 1],
    output:
        f"{results}/data/data.json",
    log:
        f"{results}/logs/data.log",
    benchmark:
        f"{results}/benchmarks/data.tsv"
    threads: 16
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
