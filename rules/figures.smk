"""From the tidy table and previews to what people read.

IN   scores.parquet, cells/*/gallery.npy
OUT  figures/figNN.{pdf,png}, tables/table1.{csv,md,tex}, fits.json, tables/{fits,crossover}.{csv,md}, summary.md
"""


rule figure:
    """Draw one figure of the paper from the table and the previews."""
    input:
        scores=rules.gather.output.scores,
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
        scores=rules.gather.output.scores,
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


rule fits:
    """Laws of model size and training compute, and the costs from which larger models win, with intervals."""
    input:
        scores=rules.gather.output.scores,
        validation=rules.validation.output[0],
    output:
        fits=f"{results}/fits.json",
        fits_csv=f"{results}/tables/fits.csv",
        fits_md=f"{results}/tables/fits.md",
        crossover_csv=f"{results}/tables/crossover.csv",
        crossover_md=f"{results}/tables/crossover.md",
    log:
        f"{results}/logs/fits.log",
    params:
        stages["fits"],
    message:
        "fit laws of size and compute"
    script:
        "../workflow_scripts/fits.py"


rule claims:
    """Each claim of the paper, evaluated: supported, not supported or cannot tell, with numbers and intervals."""
    input:
        scores=rules.gather.output.scores,
    output:
        json=f"{results}/claims.json",
        md=f"{results}/claims.md",
    log:
        f"{results}/logs/claims.log",
    params:
        stages.claims(),
    message:
        "evaluate the paper's claims"
    script:
        "../workflow_scripts/claims.py"


rule summary:
    """What the run shows of each of the paper's findings, with intervals."""
    input:
        scores=rules.gather.output.scores,
        claims=rules.claims.output.json,
        fits=rules.fits.output.fits,
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
    """Every figure and table, the claims and the summary."""
    input:
        expand(rules.figure.output, figure=figure_names),
        rules.table1.output,
        rules.fits.output,
        rules.claims.output,
        rules.summary.output,
