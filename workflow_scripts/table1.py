"""Write Table 1 as csv, markdown and LaTeX."""

from ldmscale.figures.load import experiments_of, study_info
from ldmscale.figures.table import table1, write_table
from ldmscale.jobs import job
from ldmscale.metrics.scores_file import read_scores

with job(snakemake):
    params, output = snakemake.params[0], snakemake.output
    scores = read_scores(snakemake.input.scores, params["scores"])
    table = table1(scores, experiments_of(params)["headline"], study_info(params["label"], scores))
    write_table(table, output.csv, output.md, output.tex)
