"""From the tidy table and previews to what people read.

IN   scores.parquet, cells/*/gallery.npy
OUT  figures/figNN.{pdf,png}, tables/table1.{csv,md,tex}, summary.md, report.html
"""


def shown_cells(wildcards):
    """The generation jobs whose pictures a figure shows."""
    settings = config["figures"][wildcards.figure]
    jobs = set()
    for key in ("experiment", "baseline"):
        for cell in plan.experiments.get(settings.get(key), []):
            jobs.update(job for job in plan.generation_jobs() if f"{cell.path}/".startswith(f"{job}/"))
    return [f"{results}/cells/{job}/generated.json" for job in sorted(jobs)]


rule figure:
    """Draw one figure of the paper from the table and the previews."""
    input:
        scores=rules.gather.output[0],
        cells=shown_cells,
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
        csv=report(
            f"{results}/tables/table1.csv",
            caption="../report/table1.rst",
            category="Tables",
            labels={"table": "1"},
        ),
        md=f"{results}/tables/table1.md",
        tex=f"{results}/tables/table1.tex",
    log:
        f"{results}/logs/table1.log",
    params:
        stages.report("headline"),
    script:
        "../workflow_scripts/table1.py"


rule summary:
    """What the run shows of each of the paper's findings, with intervals."""
    input:
        scores=rules.gather.output[0],
    output:
        report(
            f"{results}/summary.md",
            caption="../report/summary.rst",
            category="Summary",
            labels={"text": "summary"},
        ),
    log:
        f"{results}/logs/summary.log",
    params:
        stages.report(*plan.experiments),
    script:
        "../workflow_scripts/summary.py"


rule figures:
    """Every figure and table, and the summary."""
    input:
        expand(rules.figure.output, figure=figure_names),
        rules.table1.output,
        rules.summary.output,


rule report:
    """Snakemake's own report: figures with captions, the rule graph, run times, the config."""
    input:
        rules.figures.input,
        config=rules.config.output[0],
    output:
        f"{results}/report.html",
    log:
        f"{results}/logs/report.log",
    localrule: True
    shell:
        "snakemake figures --snakefile {workflow.snakefile:q} --configfile {input.config:q} --nolock --cores 1"
        " --workflow-profile none --report {output:q} >{log:q} 2>&1"
