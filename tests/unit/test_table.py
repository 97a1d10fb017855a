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
    assert table["paper_norm_cost"].tolist()[::5] == [0.07, 0.53, 5.17]
    assert table["paper_fid"].tolist()[::5] == [25.30, 22.35, 20.14]
    assert table["paper_clip"].tolist()[::5] == [0.305, 0.312, 0.314]
    for said in ("as printed for networks of these shapes (64 x 64 latents", "25.3 GFLOPS for 39M"):
        assert said in table.attrs["note"]
    assert (table["fid_low"] < table["fid"]).all() and (table["fid"] < table["fid_high"]).all()
    small = studies["small"]
    plain = table1(small.scores, small.experiments["headline"], small.study)
    assert not [c for c in plain if c.startswith("paper_")] and "printed" not in plain.attrs["note"]
    with pytest.raises(UserError, match="'headline'"):
        table1(study.scores, [], study.study)
    with pytest.raises(UserError, match="several for f8"):
        table1(small.scores, small.experiments["grid"], small.study)


def test_the_papers_numbers_stand_beside_its_networks_alone(tmp_path, studies):
    """A model is the paper's by its width and size, whatever its name; another network of that width is not."""
    study = studies["paper"]
    other = study.scores["filters"] == 320
    scores = study.scores.assign(params=study.scores["params"].where(~other, 400_000_000))
    scores["model"] = scores["model"].replace("83M", "mine")
    cells = study.experiments["headline"]
    table = table1(scores, cells, study.study).set_index("model")
    assert table.loc["mine", "paper_fid"] == 24.30
    assert table.loc["866M", [c for c in table if c.startswith("paper_")]].isna().all()
    write_table(table.reset_index(), *(tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex")))
    header, _, *rows = [line.split(" | ") for line in (tmp_path / "t.md").read_text().splitlines()[:13]]
    shown = {row[0].strip("| "): dict(zip(header, row, strict=True)) for row in rows}
    assert [shown["866M"][f"{c} in the paper"] for c in ("GFLOPs", "Norm. cost", "FID", "CLIP")] == [""] * 4
    assert [shown["mine"][f"{c} in the paper"] for c in ("GFLOPs", "Norm. cost", "FID", "CLIP")] == [
        "102.7", ".13", "24.30", ".308"]  # fmt: skip
    without_39m = table1(scores[scores["model"] != "39M"], cells[1:], study.study)
    assert "25.3" not in without_39m.attrs["note"] and "printed" in without_39m.attrs["note"]


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
    assert first["Norm. cost in the paper"] == ".07" and first["CLIP in the paper"] == ".305"
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
