"""Write every split's images and captions as record files."""

from pathlib import Path

from ldmscale.data.records import write_split
from ldmscale.data.source import SPLITS
from ldmscale.data.sources import open_source
from ldmscale.jobs import job
from ldmscale.provenance import write_manifest

with job(snakemake) as say:
    params = snakemake.params[0]
    folder = Path(snakemake.output[0]).parent
    counts, written, skipped = params["counts"], {}, []
    train = open_source(params["train"], params["image_size"], counts, params["seed"])
    evaluation = params["evaluation"] and open_source(
        params["evaluation"], params["image_size"], {**counts, "train": 1}, params["seed"]
    )
    for source in filter(None, (train, evaluation)):
        if hasattr(source, "check"):
            skipped.append(source.check().sentence())
            say(skipped[-1])
    for split in SPLITS:
        source = train if split == "train" or not evaluation else evaluation
        written[split] = counts[split] or source.size(split)
        write_split(folder, source, split, written[split], params["shard"])
        say(f"{split}: {written[split]} images")
    write_manifest(snakemake.output[0], "data", params["digest"], counts=written, skipped=skipped)
