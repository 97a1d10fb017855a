"""From the tidy table and previews to what people read.

IN   scores.parquet, cells/*/gallery.npy
OUT  figures/figNN.{pdf,png}, tables/table1.{csv,md,tex}, summary.md
"""


rule figure:
    """Draw one figure of the paper from the table and the previews."""
    input:
        scores=rules.gather.output[0],
        cells=shown_cells,
        beside=shown_beside,
    output:
        pdf=f"{results}/figures/{{figure}}.pdf",
        png=report(
            f"{results}/figures/{{figure}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{results}/logs/figures/{{figure}}.log",
    params:
        lambda wildcards: stages.figure(wildcards.figure),
    message:
        "draw {wildcards.figure}"
    script:
        "../workflow_scripts/figure.py"


rule table1:
    """Table 1: parameters, filters, GFLOPs, normalised cost, FID and CLIP score of the family."""
    input:
        scores=rules.gather.output[0],
    output:
        csv=f"{results}/tables/table1.csv",
        md=f"{results}/tables/table1.md",
        tex=f"{results}/tables/table1.tex",
    log:
        f"{results}/logs/table1.log",
    params:
        stages.report("headline"),
    message:
        "table 1"
    script:
        "../workflow_scripts/table1.py"


rule summary:
    """What the run shows of each of the paper's findings, with intervals."""
    input:
        scores=rules.gather.output[0],
        baselines=rules.baselines.output[0] if config["superres"] else [],
    output:
        f"{results}/summary.md",
    log:
        f"{results}/logs/summary.log",
    params:
        stages.summary(),
    message:
        "write the summary"
    script:
        "../workflow_scripts/summary.py"


rule figures:
    """Every figure and table, and the summary."""
    input:
        expand(rules.figure.output, figure=figure_names),
        rules.table1.output,
        rules.summary.output,
