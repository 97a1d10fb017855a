"""What a reader opens first, and the config that it came from.

IN   figures, tables and summary
OUT  config.yaml, report.html, explorer.html
"""


rule config:
    """The whole merged config, beside the results that it made."""
    output:
        f"{results}/config.yaml",
    log:
        f"{results}/logs/config.log",
    localrule: True
    params:
        config=config,
    message:
        "write the merged config"
    script:
        "../workflow_scripts/config.py"


rule pages:
    """The summary, the claims and Table 1 as web pages, for the report to show."""
    input:
        summary=rules.summary.output[0],
        claims=rules.claims.output.md,
        table1=rules.table1.output.md,
    output:
        summary=report(
            f"{results}/pages/summary.html",
            caption="../report/summary.rst",
            category="Summary",
            labels={"page": "summary"},
        ),
        claims=report(
            f"{results}/pages/claims.html",
            caption="../report/claims.rst",
            category="Summary",
            labels={"page": "claims"},
        ),
        table1=report(
            f"{results}/pages/table1.html",
            caption="../report/table1.rst",
            category="Tables",
            labels={"page": "Table 1"},
        ),
    log:
        f"{results}/logs/pages.log",
    message:
        "write the report's pages"
    script:
        "../workflow_scripts/pages.py"


rule explorer:
    """One page, without a network, that answers which model to use at a budget, with pictures."""
    input:
        scores=rules.gather.output.scores,
        cells=[
            f"{results}/cells/{job}/generated.json"
            for job in sorted({plan.generation_job(cell) for cell in plan.scored if cell.task in ON_PROMPTS})
        ],
    output:
        f"{results}/explorer.html",
    log:
        f"{results}/logs/explorer.log",
    params:
        stages.explorer(),
    message:
        "write the explorer"
    script:
        "../workflow_scripts/explorer.py"


rule report:
    """Snakemake's own report: figures with captions, the rule graph, run times, the scripts."""
    input:
        rules.figures.input,
        rules.pages.output,
        config=rules.config.output[0],
    output:
        f"{results}/report.html",
    log:
        f"{results}/logs/report.log",
    localrule: True
    message:
        "write the report"
    script:
        "../workflow_scripts/report.py"
