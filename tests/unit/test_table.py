"""Table 1: its numbers, and that names and features survive CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv

import pytest
from synthetic_study import PAPER_FAMILY, paper_study, small_study

from ldmscale.errors import UserError
from ldmscale.figures import table1, write_table


@pytest.fixture(scope="module")
def studies():
    return {"small": small_study(), "paper": paper_study()}


def test_table1_numbers(studies):
    study = studies["paper"]
    table = table1(study.scores, study.experiments["headline"], study.study)
    assert table["model"].tolist() == [name for name, *_ in PAPER_FAMILY]
    assert table["paper_gflops"].tolist()[:2] == [25.3, 102.7]
    assert (table["fid_low"] < table["fid"]).all() and (table["fid"] < table["fid_high"]).all()
    small = studies["small"]
    assert "paper_gflops" not in table1(small.scores, small.experiments["headline"], small.study)
    with pytest.raises(UserError, match="'headline'"):
        table1(study.scores, [], study.study)
    with pytest.raises(UserError, match="several for f8"):
        table1(small.scores, small.experiments["grid"], small.study)


def test_table1_files(tmp_path, studies):
    study = studies["paper"]
    awkward = r"50%_of $x$ & y | \alpha^2 {#1} <~>"
    scores = study.scores.assign(fid_features=awkward)
    table = table1(scores, study.experiments["headline"], study.study)
    csv_path, md, tex = (tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex"))
    write_table(table, csv_path, md, tex)
    with open(csv_path, newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [float(row["fid"]) for row in rows] == table["fid"].tolist()  # every digit
    assert rows[0]["fid_features"] == awkward

    lines = md.read_text().splitlines()
    cells = [[c.strip() for c in line.replace(r"\|", "¦").strip("|").split("|")] for line in lines[:13]]
    assert {len(row) for row in cells} == {len(cells[0])}
    first = dict(zip(cells[0], cells[2], strict=True))
    assert (first["Model"], first["Norm. cost"], first["GFLOPs"], first["GFLOPs in the paper"]) == (
        "39M", ".07", "53.0", "25.3")  # fmt: skip
    assert first["FID"] == f"{table['fid'][0]:.2f}" and first["CLIP"] == f"{table['clip'][0]:.3f}"[1:]

    text = tex.read_text()
    escaped = (
        r"50\%\_of \$x\$ \& y \textbar{} \textbackslash{}alpha\textasciicircum{}2 \{\#1\} "
        r"\textless{}\textasciitilde{}\textgreater{}"
    )
    assert text.count(escaped) == 11 and r"\toprule" in text and r"\bottomrule" in text
    columns = len(cells[0])
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert line.replace(r"\&", "").count("&") == columns - 1


def test_small_numbers_keep_their_digits(tmp_path, studies):
    study = studies["small"]
    table = table1(study.scores, study.experiments["headline"], study.study)
    table.loc[0, "norm_cost"] = 0.00123
    write_table(table, *(tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex")))
    first = [c.strip() for c in (tmp_path / "t.md").read_text().splitlines()[2].split("|")]
    assert first[4] == "0.0042" and first[5] == ".0012"
