"""Write the whole merged config beside the results."""

import yaml

from ldmscale.jobs import job
from ldmscale.provenance import atomic_path

with job(snakemake), atomic_path(snakemake.output[0]) as temporary:
    temporary.write_text(yaml.safe_dump(snakemake.params.config, sort_keys=False, allow_unicode=True))
