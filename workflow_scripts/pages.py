"""The summary, the claims and Table 1 as pages that Snakemake's report can show."""

from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from ldmscale.jobs import job
from ldmscale.provenance import atomic_path

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{font: 16px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222}}
table {{border-collapse: collapse; margin: 1em 0}}
th, td {{border-bottom: 1px solid #ccc; padding: .3em .8em; text-align: left; vertical-align: top}}
</style>
<body>
{body}</body></html>
"""

with job(snakemake):
    # Raw HTML is off: prompts come from captions that anyone may have written.
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    for name, source in snakemake.input.items():
        with atomic_path(snakemake.output[name]) as temporary:
            body = markdown.render(Path(source).read_text(encoding="utf-8"))
            temporary.write_text(PAGE.format(title=escape(Path(source).stem), body=body), encoding="utf-8")
