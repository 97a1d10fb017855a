"""Write the whole merged config beside the results."""

import yaml

from ldmscale.jobs import job
from ldmscale.provenance import atomic_path

with job(snakemake), atomic_path(snakemake.output[0]) as temporary:
    config = snakemake.params.config
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) != config:  # U+0085 comes back as a blank unless it is escaped
        text = yaml.safe_dump(config, sort_keys=False)
    temporary.write_text(text, encoding="utf-8")
