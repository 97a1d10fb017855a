"""Write every split's images and captions as record files; of a part of the job, every so many of them."""

from pathlib import Path

from ldmscale.data.records import write_split
from ldmscale.data.source import SPLITS
from ldmscale.data.sources import open_source
from ldmscale.jobs import EVERY, Progress, job
from ldmscale.provenance import write_manifest

with job(snakemake) as say:
    params, output = snakemake.params[0], Path(snakemake.output[0])
    counts, written, skipped, left_out = params["counts"], {}, [], {}
    part = tuple(map(int, snakemake.wildcards)) or (0, 1)
    sources = {}
    for name, needed in (("train", counts), ("evaluation", {**counts, "train": 1})):
        if params[name]:
            index = output.with_name(f"{name}-index")
            sources[name] = open_source(
                params[name], params["image_size"], needed, params["seed"], index, snakemake.threads
            )
            if hasattr(sources[name], "check"):
                skipped.append(sources[name].check().sentence())
                say(skipped[-1])
    for split in SPLITS:
        source = sources["train" if split == "train" else "evaluation" if "evaluation" in sources else "train"]
        count = counts[split] or source.size(split)
        shards = Progress(say, -(-count // params["shard"]), EVERY).counted(f"shards of {split}")
        made = write_split(output.parent, source, split, count, params["shard"], params["digest"], snakemake.threads,
                           shards, part)  # fmt: skip
        if made:
            written[split], left_out[split] = made.images, made.skipped.counts
            say(f"{split}: {made.images} images")
            if made.skipped.counts:
                skipped.append(f"{split}: {made.skipped.sentence()}")
                say(skipped[-1])
    write_manifest(output, "data", params["digest"], counts=written, skipped=skipped, left_out=left_out)
