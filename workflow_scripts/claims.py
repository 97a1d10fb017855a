"""Evaluate the paper's claims on the tidy table."""

from ldmscale.analysis.claims import claims_json, evaluate, load_claims, numbers_json
from ldmscale.analysis.claims_guidance import choice_biases
from ldmscale.analysis.claims_text import claims_markdown
from ldmscale.analysis.families import within_a_family
from ldmscale.analysis.findings import Run
from ldmscale.figures.load import experiments_of, study_info
from ldmscale.jobs import job
from ldmscale.metrics.scores_file import read_scores
from ldmscale.provenance import atomic_path, write_manifest

with job(snakemake):
    params, output = snakemake.params[0], snakemake.output
    scores = read_scores(snakemake.input.scores, params["scores"])
    experiments = experiments_of(params)
    judged = evaluate(scores, experiments, load_claims())
    biases = choice_biases(Run(*within_a_family(scores, experiments)), "grid", ("fid", "cmmd"))
    with atomic_path(output.md) as temporary:
        temporary.write_text(claims_markdown(judged, biases, study_info(params["label"], scores)), encoding="utf-8")
    bias = {metric: numbers_json(numbers) for metric, numbers in biases.items()}
    write_manifest(output.json, "claims", params["digest"], claims=claims_json(judged), choice_bias=bias)
