"""Say what the run shows of each of the paper's findings."""

from ldmscale.analysis.findings import evaluate
from ldmscale.analysis.summary import summary_markdown
from ldmscale.figures.load import experiments_of, study_info
from ldmscale.jobs import job
from ldmscale.metrics.scores_file import read_scores
from ldmscale.provenance import atomic_path

with job(snakemake.log[0], snakemake.threads):
    params = snakemake.params[0]
    scores = read_scores(snakemake.input.scores, params["scores"])
    text = summary_markdown(evaluate(scores, experiments_of(params)), study_info(params["label"], scores), scores)
    with atomic_path(snakemake.output[0]) as temporary:
        temporary.write_text(text)
