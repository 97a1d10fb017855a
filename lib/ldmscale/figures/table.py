"""Table 1: the family and its quality at one sampling setting, as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import heldout, replicates, select
from ldmscale.analysis.study import SAMPLER_NAMES, StudyInfo, format_params
from ldmscale.analysis.summary import markdown_text
from ldmscale.cells.cell import Cell
from ldmscale.cells.paper import SETTING, SLIP, printed
from ldmscale.errors import UserError
from ldmscale.figures.style import study_line
from ldmscale.provenance import atomic_path
from ldmscale.text import one_line

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def table1(scores: pd.DataFrame, cells: Sequence[Cell], study: StudyInfo) -> pd.DataFrame:
    """One row a model, smallest first: size, cost and held-out FID and CLIP score with 95% intervals.

    A U-Net's size is its ``filters``, a transformer's its ``width`` and ``depth``.

    ``cells`` are the experiment ``headline``'s, one a model. Where a model is one of the paper's (see
    :func:`ldmscale.cells.paper.printed`) its printed numbers stand beside ours: ``paper_gflops``, ``paper_norm_cost``,
    ``paper_fid``, ``paper_clip``. ``attrs["note"]`` says in words what study and setting the table shows.
    """
    if not cells:
        raise UserError("Table 1 needs the experiment 'headline' in the config: one sampler, step count and CFG")
    rows = heldout(select(scores, cells))
    if rows["model"].duplicated().any():
        twice = rows.loc[rows["model"].duplicated(), "model"].iloc[0]
        raise UserError(f"Table 1 needs one cell a model, the experiment 'headline' has several for {twice}")
    sizes = [c for c in ("filters", "width", "depth") if c in rows and rows[c].notna().any()]
    table = rows[["model", "params", *sizes, "gflops"]].copy()
    filters = rows["filters"].astype(object).where(rows["filters"].notna(), None)
    paper = [printed(f, p) if f else None for f, p in zip(filters, table["params"], strict=True)]

    def add_paper(column: str) -> None:
        if any(paper):
            table[f"paper_{column}"] = [getattr(row, column) if row else np.nan for row in paper]

    add_paper("gflops")
    table["norm_cost"] = rows["norm_cost"]
    add_paper("norm_cost")
    for metric in ("fid", "clip"):
        pairs = zip(rows[metric], replicates(rows, metric), strict=True)
        limits = np.array([interval(value, reps) for value, reps in pairs])
        table[metric], table[f"{metric}_low"], table[f"{metric}_high"] = rows[metric], limits[:, 0], limits[:, 1]
        add_paper(metric)
    for column in ("n", "fid_features", "clip_features"):
        table[column] = rows[column]
    cell = cells[0]
    note = (
        f"{study_line(study, rows)} CLIP score by {study.clip_features}. {cell.steps}-step "
        f"{SAMPLER_NAMES[cell.sampler]}, CFG {cell.cfg:g}. 95% bootstrap intervals over prompts."
    )
    if any(paper):
        note += f" In the paper: Table 1 of arXiv 2404.01367 as printed for networks of these shapes ({SETTING})."
        note += f" {SLIP}" if any(row and row.name == "39M" for row in paper) else ""
    table.attrs["note"] = note
    return table.reset_index(drop=True)


def write_table(table: pd.DataFrame, csv: str | Path, md: str | Path, tex: str | Path) -> None:
    """Write :func:`table1`: ``csv`` with every digit, ``md`` and ``tex`` (booktabs) rounded as the paper rounds."""
    shown = _formatted(table)
    with atomic_path(csv) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    with atomic_path(md) as temporary:
        temporary.write_text(_markdown(shown, table.attrs["note"]), encoding="utf-8")
    with atomic_path(tex) as temporary:
        temporary.write_text(_latex(shown, table.attrs["note"]), encoding="utf-8")


def tex_text(text: object) -> str:
    """``text`` as literal LaTeX: one line, every special character escaped."""
    return "".join(_TEX.get(c, c) for c in one_line(text))


def _gflops(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _without_zero(digits: int) -> Callable[[float], str]:
    """The paper's ``.07`` and ``.305``; values too small for the digits keep two significant ones."""

    def write(value: float) -> str:
        text = f"{value:.{digits}f}" if abs(value) >= 10**-digits or value == 0 else f"{value:.2g}"
        return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text

    return write


def _formatted(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text, one interval column for each metric's two limits."""
    cost, clip = _without_zero(2), _without_zero(3)
    shown = pd.DataFrame({"Model": table["model"], "Parameters": table["params"].map(format_params)})
    if "width" in table:  # transformers, U-Nets beside them or not
        both = "Filters, or width × depth" if "filters" in table else "Width × depth"
        shown[both] = [_size(row) for row in table.to_dict("records")]
    else:
        shown["Filters"] = table["filters"].map(str)

    def add(column: str, title: str, write: Callable[[float], str]) -> None:
        shown[title] = table[column].map(write)
        if f"{column}_low" in table:
            limits = zip(table[f"{column}_low"], table[f"{column}_high"], strict=True)
            shown[f"{title} 95% interval"] = ["" if np.isnan(a) else f"{write(a)} to {write(b)}" for a, b in limits]
        if f"paper_{column}" in table:
            shown[f"{title} in the paper"] = ["" if np.isnan(v) else write(v) for v in table[f"paper_{column}"]]

    add("gflops", "GFLOPs", _gflops)
    add("norm_cost", "Norm. cost", cost)
    add("fid", "FID", "{:.2f}".format)
    add("clip", "CLIP", clip)
    shown["n"] = table["n"].map(str)
    shown["FID features"] = table["fid_features"]
    return shown.assign(**{"CLIP features": table["clip_features"]})


def _size(row: dict) -> str:
    return f"{row['filters']}" if pd.isna(row["width"]) else f"{row['width']} × {row['depth']}"


_TEXT_COLUMNS = ("Model", "FID features", "CLIP features")


def _markdown(shown: pd.DataFrame, note: str) -> str:
    align = ["---" if column in _TEXT_COLUMNS else "---:" for column in shown]
    lines = [list(shown.columns), align, *([markdown_text(v) for v in row] for row in shown.itertuples(index=False))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{markdown_text(note)}\n"


def _latex(shown: pd.DataFrame, note: str) -> str:
    align = "".join("l" if column in _TEXT_COLUMNS else "r" for column in shown)
    head = " & ".join(tex_text(column) for column in shown)
    body = "".join(f"{' & '.join(tex_text(v) for v in row)} \\\\\n" for row in shown.itertuples(index=False))
    table = f"\\begin{{tabular}}{{{align}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}"
    return f"% needs \\usepackage{{booktabs}}\n{table}\n\n{{\\footnotesize {tex_text(note)}}}\n"
