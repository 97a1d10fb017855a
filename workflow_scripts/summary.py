"""Say what the run shows of each of the paper's findings."""

from ldmscale.analysis.distilled import distilled_findings
from ldmscale.analysis.downstream import downstream_findings
from ldmscale.analysis.findings import evaluate
from ldmscale.analysis.summary import summary_markdown
from ldmscale.figures.load import experiments_of, study_info
from ldmscale.jobs import job
from ldmscale.metrics.scores_file import read_scores
from ldmscale.provenance import atomic_path, read_manifest

with job(snakemake.log[0], snakemake.threads):
    params = snakemake.params[0]
    scores = read_scores(snakemake.input.scores, params["scores"])
    experiments = experiments_of(params)
    found = evaluate(scores, experiments) + downstream_findings(scores) + distilled_findings(scores, experiments)
    baselines = ()
    if snakemake.input.baselines:
        baselines = read_manifest(snakemake.input.baselines, "baselines", params["baselines"])["rows"]
    text = summary_markdown(found, study_info(params["label"], scores), scores, baselines)
    with atomic_path(snakemake.output[0]) as temporary:
        temporary.write_text(text)
