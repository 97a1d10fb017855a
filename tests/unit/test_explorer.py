"""The explorer: what the page holds, that it needs nothing from anywhere, and that it answers as `advise` does."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re

import chromium
import numpy as np
import pandas as pd
import pytest
from helpers import merged
from PIL import Image
from synthetic_study import paper_study, small_study

from ldmscale.analysis.advice import advise
from ldmscale.analysis.frontier import COST_AXES
from ldmscale.cells.cell import Cell
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study
from ldmscale.errors import UserError
from ldmscale.explorer import explorer_page, page

NASTY = "</script><script>throw new Error('run')</script><img src=http://example.org/x.png onerror=alert(1)> ]]> <!-- "
needs_chromium = pytest.mark.skipif(not chromium.find(), reason="no Chromium on this machine")


def distilled(data):
    """``data`` with another task, metrics with and without replicates, measured seconds, and a gap."""
    rows = data.scores
    rng = np.random.default_rng(5)
    some = rows[(rows["sampler"] == "ddim") & (rows["steps"] == 4) & rows["model"].isin(["f8", "f24"])]
    codi = some.assign(
        task="codi", weights="codi-7", sampler="codi", fid=some["fid"] - 9 + rng.normal(size=len(some)),
        cost=1.3 * some["cost"], cell=some["cell"].str.replace("task=t2i", "task=codi"),
    )  # fmt: skip
    rows = pd.concat([rows, codi], ignore_index=True)
    rows["cell"] = [
        re.sub("weights=.*?/sampler=.*?/", f"weights={w}/sampler={s}/", c)
        for c, w, s in zip(rows["cell"], rows["weights"], rows["sampler"], strict=True)
    ]
    rows["coverage"] = rng.uniform(0.1, 0.9, len(rows)).round(2)  # ties, and no replicates
    rows["seconds"] = rng.uniform(1e-5, 1e-3, len(rows))
    rows["seconds"] = rows.groupby("cell")["seconds"].transform("first")
    rows["cmmd"] = rows["fid"] / 1e6
    rows["cmmd_reps"] = [(np.asarray(reps) / 1e6).tolist() for reps in rows["fid_reps"]]
    rows.loc[rows["model"] == "f12", "cmmd"] = np.nan
    return dataclasses.replace(data, scores=rows, study=dataclasses.replace(data.study, name=NASTY),
                               gallery=[*data.gallery[:-1], NASTY])  # fmt: skip


@pytest.fixture(scope="module")
def study():
    return distilled(small_study())


def text_of(study):
    return explorer_page(study.scores, study.study, study.models, study.gallery, study.previews)


def held_by(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def file(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    path.write_text(text_of(study), encoding="utf-8")
    return path


# ---------------------------------------------------------------- what it holds


def test_it_holds_the_table(study, file):
    data, rows = held_by(file.read_text()), study.scores
    assert [a["name"] for a in data["axes"]] == list(COST_AXES)
    assert [m["name"] for m in data["metrics"]] == ["fid", "clip", "cmmd", "coverage"]
    assert data["gallery"] == study.gallery and data["study"] == NASTY
    assert len(data["points"]) == rows["cell"].nunique()
    both = rows.pivot(index=["task", "model", "weights", "sampler", "steps", "cfg"], columns="split", values="fid")
    for p in data["points"]:
        values = both.loc[(p["task"], p["model"], p["weights"], p["sampler"], p["steps"], p["cfg"])]
        assert (p["tuning"][0], p["held"][0]) == (values["tuning"], values["heldout"])
        assert p["low"][0] < p["held"][0] < p["high"][0]
        assert (p["held"][2] is None) == (p["model"] == "f12") and p["low"][3] is None and p["reps"][3] is None


def test_what_any_budget_can_choose_has_pictures_and_replicates(study, file):
    data = held_by(file.read_text())
    points = {(p["task"], p["model"], p["weights"], p["sampler"], p["steps"], p["cfg"]): p for p in data["points"]}
    chosen, spread = set(), np.random.default_rng(3)
    for _ in range(60):
        a, (m, metric) = spread.integers(len(COST_AXES)), [(0, "fid"), (3, "coverage")][spread.integers(2)]
        budget = spread.choice([p["axes"][a] for p in data["points"]])
        for s in advise(study.scores, budget, list(COST_AXES)[a], metric):
            p = points[(s.task, s.model, s.weights, s.sampler, s.steps, s.cfg)]
            chosen.add(id(p))
            assert p["picture"] and (metric == "coverage" or p["reps"][m]) and s.value == p["held"][m]
    assert 10 < len(chosen) <= sum(p["picture"] is not None for p in points.values()) < len(points)


def test_pictures_are_the_cells_own(study, file):
    data = held_by(file.read_text())
    found = [p for p in data["points"] if p["picture"]]
    for p in found[::7]:
        cell = next(c for c in study.scores["cell"] if c.endswith("/cfg={:g}".format(p["cfg"])) and
                    all(f"{k}={p[k]}/" in c for k in ("task", "model", "weights", "sampler", "steps")))  # fmt: skip
        sprite = Image.open(io.BytesIO(base64.b64decode(p["picture"].partition(",")[2]))).convert("RGB")
        expected = np.concatenate(study.previews(Cell.parse(cell)))
        assert np.abs(np.asarray(sprite, int) - expected).mean() < 4  # 256 colours


def test_pictures_shrink_until_they_fit(monkeypatch):
    images = [np.random.default_rng(i).integers(0, 256, (3, 140, 140, 3), np.uint8) for i in range(2)]
    sprites, side = page._pictures(images, "abc")
    assert side == page.LARGEST and Image.open(io.BytesIO(base64.b64decode(sprites[0][22:]))).size == (128, 384)
    monkeypatch.setattr(page, "PICTURE_BYTES", 30_000)
    sprites, side = page._pictures(images, "abc")
    assert page.SMALLEST < side < 100 and 15_000 < sum(map(len, sprites)) <= 30_000
    monkeypatch.setattr(page, "PICTURE_BYTES", 100)
    assert page._pictures(images, "abc")[1] == page.SMALLEST


def test_bad_previews_and_tables_are_sentences(study):
    with pytest.raises(UserError, match=r"should be uint8 \[4,H,W,3\]"):
        text_of(dataclasses.replace(study, previews=lambda cell: np.zeros((3, 8, 8, 3), np.uint8)))
    rows = study.scores
    for bad, said in (
        (rows[rows["split"] == "heldout"], "no text-to-image cell"),
        (rows.assign(task="superres"), "no text-to-image cell"),
        (pd.concat([rows, rows.iloc[:1]]), "twice in one split"),
    ):
        with pytest.raises(UserError, match=said):
            text_of(dataclasses.replace(study, scores=bad))


def test_the_papers_study_stays_under_15_mb():
    """Eleven models, 1,500 cells; pictures that nothing compresses."""
    data = paper_study(replicates=200)
    noise = np.random.default_rng(0).integers(0, 256, (len(data.gallery), 72, 72, 3), np.uint8)
    text = text_of(dataclasses.replace(data, previews=lambda cell: noise))
    assert len(text) < 15e6
    assert held_by(text)["side"] > 40


def test_nothing_from_outside_is_markup(file):
    text = file.read_text()
    ours = re.sub(r"<script>/\*\*\n\* plotly\.js.*?</script>", "", text, flags=re.DOTALL)
    assert ours.count("<script") == 2 and "<img" not in ours and "<!--" not in ours
    assert "default-src 'none'" in ours and "http:" not in ours.replace("http://example.org", "")


def test_the_workflow_gives_it_the_scored_cells_on_prompts():
    plan = Plan(Study(merged("smoke.yaml")))
    params = Chain(plan).explorer()
    drawn = [Cell.parse(path) for path in params["drawn"]]
    assert {cell.task for cell in drawn} == {"t2i", "codi", "guided"}
    assert set(drawn) == {cell for cell in plan.scored if cell.task in ("t2i", "codi", "guided")}
    changed = Chain(Plan(Study(merged("smoke.yaml", {"gallery": ["a small star", "a red circle"]})))).explorer()
    assert changed["gallery"] != params["gallery"] and changed["scores"] != params["scores"]


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    with chromium.Chromium() as opened:
        yield opened


SHOWN = """(() => ({
  answer: document.getElementById("answer").textContent, question: document.getElementById("question").textContent,
  next: [...document.querySelectorAll("#next tr")].map((row) => [...row.children].map((cell) => cell.textContent)),
  command: document.getElementById("command").textContent, hash: location.hash,
  pictures: document.querySelectorAll("#best figure").length, points: document.querySelectorAll("#plot .point").length,
}))()"""


@needs_chromium
def test_it_loads_without_an_error_or_a_request_to_anywhere(browser, file):
    browser.problems.clear(), browser.requests.clear()
    browser.open(file)
    shown = browser.run(SHOWN)
    assert shown["answer"].startswith("f") and shown["pictures"] == 4 and shown["points"] > 100
    assert browser.run("document.getElementById('study').textContent") == NASTY
    assert browser.run("document.querySelector('#best figure:last-child figcaption').textContent") == NASTY
    browser.run("""for (const select of document.querySelectorAll("select")) for (const option of select.options) {
      select.value = option.value;
      select.dispatchEvent(new Event("change"));
    }""")
    browser.run("for (const button of document.querySelectorAll('td button')) button.click()")
    assert browser.problems == []
    assert file.as_uri() in browser.requests
    assert {request.partition(":")[0] for request in browser.requests} <= {"file", "data", "about"}


@needs_chromium
def test_the_slider_changes_the_answer_and_the_address(browser, file):
    browser.open(file)
    slide = """((place) => { const slider = document.getElementById("slider"); slider.value = place;
      slider.dispatchEvent(new Event("input")); slider.dispatchEvent(new Event("change")); })"""
    seen = []
    for place in (0, 400, 1000):
        browser.run(f"{slide}({place})")
        seen.append(browser.run(SHOWN))
    assert len({s["answer"] for s in seen}) == len({s["question"] for s in seen}) == len({s["hash"] for s in seen}) == 3
    assert len(seen[0]["next"]) == 0 or len(seen[0]["next"]) < len(seen[2]["next"])
    browser.open(file, seen[1]["hash"])
    assert browser.run(SHOWN) == seen[1]  # a link to it shows the same


STATES = """(async (states) => {
  const found = [];
  for (const state of states) {
    const changed = new Promise((done) => addEventListener("hashchange", () => setTimeout(done), { once: true }));
    location.hash = new URLSearchParams({ ...state, nonce: found.length }).toString();
    await changed;
    found.push(SHOWN);
  }
  return found;
})""".replace("SHOWN", SHOWN)


@needs_chromium
def test_its_answers_are_those_of_advise(browser, study, file):
    rng, rows = np.random.default_rng(11), study.scores
    pick = lambda values: values[rng.integers(len(values))]  # noqa: E731
    states = []
    for _ in range(120):
        axis = pick(list(COST_AXES))
        low, high = rows[axis].min() / 1.3, rows[axis].max() * 1.3
        budget = pick([low * (high / low) ** rng.uniform(), pick(rows[axis].to_numpy())])  # also a cell's very cost
        states.append({"budget": float(budget), "axis": axis, "metric": pick(["fid", "clip", "cmmd", "coverage"]),
                       "sampler": pick(["", "", *rows["sampler"].unique()]),
                       "weights": pick(["", "", "", *rows["weights"].unique()])})  # fmt: skip
    browser.open(file)
    answers, best = browser.run(f"{STATES}({json.dumps(states)})"), []
    for state, shown in zip(states, answers, strict=True):
        given = {**state, "sampler": state["sampler"] or None, "weights": state["weights"] or None}
        try:
            settings = advise(rows, **given)
        except UserError as error:
            there = rows[(rows["sampler"] == state["sampler"]) & (rows["weights"] == state["weights"])]
            empty = state["sampler"] and state["weights"] and there.empty
            assert shown["answer"] == ("No setting has this sampler with these weights." if empty else str(error))
            assert shown["next"] == [] and shown["pictures"] == 0
            continue
        best.append(settings[0].cell)
        assert shown["answer"] == settings[0].words(state["axis"], state["metric"]), state
        assert float(re.search(r"--budget (\S+)", shown["command"])[1]) == state["budget"]
        assert len(shown["next"]) == len(settings[1:9])
        for row, s in zip(shown["next"], settings[1:9], strict=True):
            assert row[0] == f"{s.model}, {s.sampler}, {s.steps} steps, CFG {s.cfg:g}, {s.weights}"
            assert row[4] == s.verdict
            told = [float(x) for x in row[3].split(" to ")]
            expected = [s.difference] if len(told) == 1 else [s.difference_low, s.difference_high]
            assert told == pytest.approx(expected, rel=0.006, abs=1e-12)
    assert len(set(best)) > 20, "the states ask for the same again and again"


@needs_chromium
@pytest.mark.parametrize("width", [1300, 420])
def test_nothing_overlaps_or_leaves_the_window(browser, file, width):
    browser.size(width, 900)
    browser.open(file, "#metric=coverage&axis=sampling_tflops&budget=1")
    assert browser.run("document.documentElement.scrollWidth") <= width
    boxes = browser.run("""["header", "#controls", "#left", "#right", "#best", "#legend", "#plot"].map((name) => {
      const box = document.querySelector(name).getBoundingClientRect();
      return [box.left, box.right, box.top, box.bottom]; })""")
    for i, a in enumerate(boxes[:5]):
        assert 0 <= a[0] < a[1] <= width and a[2] < a[3]
        for b in boxes[i + 1 : 5]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2], (a, b)
    assert boxes[5][3] <= boxes[6][2]
    inside = browser.run("""(() => { const plot = document.getElementById("plot").getBoundingClientRect();
      const texts = [...document.querySelectorAll("#plot .xtitle, #plot .ytitle, #plot .xtick, #plot .ytick")];
      return texts.length > 8 && texts.every((text) => {
        const box = text.getBoundingClientRect();
        return box.left >= plot.left - 1 && box.right <= plot.right + 1 && box.bottom <= plot.bottom + 1; }); })()""")
    assert inside, "a label of the plot is cut off"
