"""Say what the run shows of each of the paper's findings."""

from ldmscale.analysis.claims import from_json, numbers_from_json
from ldmscale.analysis.claims_text import choice_section, disagreements
from ldmscale.analysis.families import families_section
from ldmscale.analysis.fits_text import fits_section
from ldmscale.analysis.summary import summary_markdown
from ldmscale.figures.load import experiments_of, study_info
from ldmscale.jobs import job
from ldmscale.metrics.scores_file import read_scores
from ldmscale.provenance import atomic_path, read_manifest

with job(snakemake):
    params = snakemake.params[0]
    scores = read_scores(snakemake.input.scores, params["scores"])
    claims = read_manifest(snakemake.input.claims, "claims", params["claims"])
    judged = from_json(claims["claims"])
    biases = {metric: numbers_from_json(numbers) for metric, numbers in claims["choice_bias"].items()}
    baselines = ()
    if snakemake.input.baselines:
        baselines = read_manifest(snakemake.input.baselines, "baselines", params["baselines"])["rows"]
    study = study_info(params["label"], scores)
    fits = read_manifest(snakemake.input.fits, "fits", params["fits"])
    both = families_section(scores, experiments_of(params))
    more = [both, disagreements(judged), choice_section(biases, study), fits_section(fits)]
    text = summary_markdown([each.finding for each in judged], study, scores, baselines, more)
    with atomic_path(snakemake.output[0]) as temporary:
        temporary.write_text(text, encoding="utf-8")
