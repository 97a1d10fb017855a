"""Acceleration factors and findings on distilled models, on made tables whose right answers are known, both ways."""

from __future__ import annotations

import dataclasses
import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from synthetic_study import PAPER_FAMILY, STUDY, family

from ldmscale.analysis.distilled import (
    Acceleration,
    acceleration,
    best_setting,
    codi_acceleration,
    distilled_findings,
    equal_steps,
    relative,
    student_steps,
)
from ldmscale.analysis.findings import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED
from ldmscale.analysis.summary import markdown_text, summary_markdown
from ldmscale.cells.cell import Cell
from ldmscale.figures.data import FigureData

MODELS = [dataclasses.replace(m, norm_cost=2.0 ** (i - 2)) for i, m in enumerate(family(PAPER_FAMILY, 804.3)[:3])]
STEPS, CFGS = (2, 4, 8, 16, 32), (2.0, 4.0)
ADAPTER = 4 / 3  # an evaluation of CoDi over one of its U-Net
REPLICATES = 100


def plain(model: int, steps: int) -> float:
    """Undistilled: size helps, and each doubling of the steps from 2 to 32 takes 4 off."""
    return 40 - 2 * model - 4 * math.log2(steps)


def codi(model: int, steps: int) -> float:
    """Distilled, in 4 steps: as 16 undistilled."""
    return plain(model, 16) - 0.1 * math.log2(steps / 4)


def guided(model: int, steps: int, student: int) -> float:
    return plain(model, 8) + abs(math.log2(steps / student))


def made_study(
    *, models=MODELS, plain=plain, codi=codi, guided=guided, steps=STEPS, few=(2, 4, 8), cfgs=CFGS, students=(16, 8, 4),
    noise=0.05, seed=0, gallery=("a red circle", "two cats"), **columns,
) -> FigureData:  # fmt: skip
    """A study of undistilled models in the experiment ``grid`` and distilled ones in ``codi`` and ``guided``.

    The guidance weight 4 is the best for distilled models and 2 for others, by 3; on held-out prompts the better one
    is worse by 0.5 and the other better by 20, so that choosing there is seen. ``columns`` replaces some of the table.
    """

    def experiment(task, weights, sampler, steps):
        return [Cell(task, m.name, w, sampler, n, g) for m, w, n, g in product(models, weights, steps, cfgs)]

    experiments = {
        "grid": experiment("t2i", ["pretrain-900"], "ddim", steps) + experiment("t2i", ["pretrain-900"], "ddpm", (4,)),
        "codi": experiment("codi", ["codi-50"], "codi", few),
        "guided": experiment("guided", [f"guided_s{n}-70" for n in students], "ddim", few),
    }
    rng = np.random.default_rng(seed)
    luck = {split: rng.normal(size=REPLICATES) for split in ("tuning", "heldout")}
    ranks, rows = {m.name: i for i, m in enumerate(models)}, []
    for cell in [c for cells in experiments.values() for c in cells]:
        rank = ranks[cell.model]
        model = models[rank]
        if cell.task == "guided":
            value = guided(rank, cell.steps, student_steps(cell.weights))
        else:
            value = {"t2i": plain, "codi": codi}[cell.task](rank, cell.steps) - 30 * (cell.sampler == "ddpm")
        best = len(cfgs) == 1 or cell.cfg == (cfgs[0] if cell.task == "t2i" else cfgs[1])
        cost = model.norm_cost * cell.steps * (ADAPTER if cell.task == "codi" else 1)
        twice = 1 if cell.task == "guided" or cell.cfg == 1 else 2
        for split, n in (("tuning", STUDY.n_tuning), ("heldout", STUDY.n_heldout)):
            shown = value + (0 if best else 3 if split == "tuning" else -20)
            reps = 1.04 * shown + luck[split] + rng.normal(scale=noise, size=REPLICATES)
            rows.append(
                {
                    "cell": cell.path, **dataclasses.asdict(cell), "train_step": cell.train_step, "split": split,
                    "filters": model.filters, "params": model.params, "gflops": model.gflops,
                    "norm_cost": model.norm_cost, "n": n, "evaluations": cell.steps, "cost": cost,
                    "nfe_cost": twice * cost, "sampling_tflops": twice * cost / 10 + 0.5, "fid": shown,
                    "fid_features": STUDY.fid_features, "fid_reps": reps.tolist(), "clip": 0.3,
                    "clip_features": STUDY.clip_features, "clip_reps": [0.3] * REPLICATES, **columns,
                }
            )  # fmt: skip

    def previews(cell: Cell) -> np.ndarray:
        draw = np.random.default_rng([*cell.path.encode()])
        return draw.integers(0, 256, (len(gallery), 4, 4, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)

    return FigureData(pd.DataFrame(rows), experiments, {}, previews, list(gallery), STUDY, models)


def findings(study: FigureData) -> dict:
    return {f.id: f for f in distilled_findings(study.scores, study.experiments)}


def factors(**changes) -> list[Acceleration]:
    scores = made_study(**changes).scores
    t2i = scores[(scores["task"] == "t2i") & (scores["sampler"] == "ddim")]
    return acceleration(best_setting(scores[scores["task"] == "codi"]), best_setting(t2i))


ALL = ["codi-few-steps", "codi-acceleration", "codi-size", "codi-small-undistilled", "guided-few-steps"]


# ---- settings -------------------------------------------------------------------------------------------------------


def test_guidance_is_chosen_on_tuning_and_reported_on_heldout():
    scores = made_study().scores
    best = best_setting(scores[scores["task"] == "codi"])
    assert set(best["split"]) == {"heldout"} and set(best["cfg"]) == {4.0} and len(best) == 3 * 3
    assert best["model"].drop_duplicates().tolist() == [m.name for m in MODELS]


def test_last_weights_of_each_student():
    scores = made_study().scores
    rows = scores[scores["task"] == "guided"]
    early = rows.assign(weights=rows["weights"].str.replace("-70", "-7"), train_step=7, fid=1.0)
    early = early.assign(cell=early["cell"].str.replace("-70", "-7"))
    early = early[early["weights"].str.startswith("guided_s8")]
    both = best_setting(pd.concat([early, rows]))
    assert set(both["weights"]) == {"guided_s16-70", "guided_s8-70", "guided_s4-70"}
    assert student_steps("guided_s16-70") == 16


# ---- acceleration ---------------------------------------------------------------------------------------------------


def test_equal_steps_is_linear_in_the_logarithm():
    steps, fids = np.array([2.0, 8.0, 32.0]), np.array([30.0, 20.0, 16.0])[:, None]
    found = [float(equal_steps(steps, fids, np.array([t]))[0]) for t in (30.0, 25.0, 20.0, 18.0, 16.0)]
    np.testing.assert_allclose(found, [2, 4, 8, 16, 32])


def test_equal_steps_makes_no_number_up_beyond_the_grid():
    steps, fids = np.array([2.0, 8.0]), np.array([30.0, 20.0])[:, None]
    assert equal_steps(steps, fids, np.array([30.01]))[0] == -np.inf
    assert equal_steps(steps, fids, np.array([19.99]))[0] == np.inf
    assert equal_steps(steps[:1], fids[:1], np.array([29.0]))[0] == np.inf


def test_equal_steps_takes_the_fewest_where_the_curve_turns():
    steps, fids = np.array([2.0, 4.0, 8.0, 16.0]), np.array([30.0, 20.0, 26.0, 10.0])[:, None]
    found = equal_steps(steps, np.tile(fids, 3), np.array([20.0, 25.0, 15.0]))
    np.testing.assert_allclose(found, [4, 2 * 2**0.5, 8 * 2 ** (11 / 16)])


def test_factors_of_known_curves():
    found = factors()
    assert [f.model for f in found] == [m.name for m in MODELS]
    for factor in found:
        assert factor.value == pytest.approx(16 / 4) and (factor.least, factor.most) == (0.5, 8)
        assert 3.8 < factor.low < factor.value < factor.high < 4.2
        assert factor.words() == "4" and len(factor.reps) == REPLICATES
    halfway = factors(codi=lambda model, steps: plain(model, 8) - 2)
    assert halfway[0].value == pytest.approx(8 * 2**0.5 / 4)


def test_replicates_are_paired():
    """The luck of the prompts, 1 FID wide or a quarter of a doubling, is common to a model's rows and must cancel."""
    factor = factors(noise=0.01)[0]
    assert factor.high / factor.low < 1.02
    assert np.ptp(factors(noise=1.0)[0].reps) > np.ptp(factor.reps)


def test_intervals_lie_around_the_values():
    """The FID of a resample is too high, by more in one setting than in another: only its spread counts."""
    scores = made_study().scores
    few = best_setting(scores[scores["task"] == "codi"])
    few = few.assign(fid_reps=[[r + 9 for r in reps] for reps in few["fid_reps"]])
    for found in acceleration(few, best_setting(scores[(scores["task"] == "t2i") & (scores["sampler"] == "ddim")])):
        assert found.low < found.value < found.high


def test_factors_beyond_the_grid_are_no_numbers():
    above, below = (factors(codi=lambda model, steps, v=v: v)[0] for v in (1.0, 90.0))
    assert above.value == above.low == above.high == np.inf
    assert below.value == below.low == below.high == -np.inf
    assert above.words() == "more than 8" and below.words() == "less than 0.5"
    assert str(above.number).endswith("not within this run (95% interval not within this run to not within this run)")
    assert "0.5 to 8 are within" in above.number.label and str(above) == "39M more than 8"
    edge = factors(codi=lambda model, steps: plain(model, 32) + 0.05, noise=0.3)[0]
    assert np.isfinite(edge.value) and edge.high == np.inf and "to more than 8" in str(edge)


def test_a_model_without_both_has_no_factor():
    scores = made_study().scores
    tables = [best_setting(scores[scores["task"] == task]) for task in ("codi", "guided")]
    undistilled = best_setting(scores[(scores["task"] == "t2i") & (scores["sampler"] == "ddim")])
    assert [f.model for f in acceleration(tables[0], undistilled[undistilled["model"] != "83M"])] == ["39M", "145M"]
    assert acceleration(tables[0][tables[0]["steps"] != 4], undistilled) == []


def factor(value: float, reps) -> Acceleration:
    return Acceleration("m", value, math.nan, math.nan, 0.5, 8.0, np.asarray(reps, float))


@pytest.mark.parametrize(
    "a,b,low,high",
    [
        (4.0, 2.0, 2.0, 2.0),
        (math.inf, 2.0, 4.0, math.inf),  # more than 8, over 2
        (-math.inf, 2.0, 0.0, 0.25),  # less than 0.5, over 2
        (2.0, math.inf, 0.0, 0.25),
        (2.0, -math.inf, 4.0, math.inf),
        (math.inf, math.inf, 0.0, math.inf),
        (math.inf, -math.inf, 16.0, math.inf),
        (-math.inf, -math.inf, 0.0, math.inf),
    ],
)
def test_the_ratio_allows_for_all_that_a_factor_may_be(a, b, low, high):
    number = relative(factor(a, [a, a, a]), factor(b, [b, b, b]))
    assert (number.low, number.high) == pytest.approx((low, high))
    assert number.value == pytest.approx(2.0) if low == high else number.value == math.inf


# ---- findings -------------------------------------------------------------------------------------------------------


def test_effects_that_are_there_are_found():
    # At 145M's distilled cost, 16/3, 83M affords 8 steps: better than the distilled model if FID hardly falls by size.
    found = findings(made_study(plain=lambda m, n: 40 - 0.1 * m - 4 * math.log2(n), codi=lambda m, n: 28.5 - 0.1 * m))
    assert {id: f.verdict for id, f in found.items()} == dict.fromkeys(ALL, SUPPORTED)
    assert list(found) == ALL


def test_effects_the_other_way_are_not_supported():
    def one_is_worse(model, steps, *_):
        return plain(model, 4) + (1 if model == 2 else -7)

    found = findings(made_study(codi=one_is_worse, guided=one_is_worse))
    assert found["codi-few-steps"].verdict == found["guided-few-steps"].verdict == NOT_SUPPORTED
    assert findings(made_study(codi=lambda m, n: 20 + m))["codi-size"].verdict == NOT_SUPPORTED
    assert (
        findings(made_study(codi=lambda m, n: plain(m, [32, 12, 6][m])))["codi-acceleration"].verdict == NOT_SUPPORTED
    )
    assert findings(made_study(codi=lambda m, n: 5.0))["codi-small-undistilled"].verdict == NOT_SUPPORTED


def test_each_model_against_itself_in_four_steps():
    finding = findings(made_study())["codi-few-steps"]
    assert [n.label for n in finding.numbers] == [f"{m.name}: FID distilled minus undistilled, 4 steps" for m in MODELS]
    assert [n.value for n in finding.numbers] == pytest.approx([-8] * 3)
    assert all(n.high - n.low < 0.5 for n in finding.numbers)  # paired
    assert "3 of 3 models are better" in finding.note and "39M: 4, undistilled 2;" in finding.note
    one_worse = findings(made_study(codi=lambda m, n: plain(m, 4) + (1 if m == 1 else -1)))["codi-few-steps"]
    assert one_worse.verdict == NOT_SUPPORTED and "2 of 3 models are better" in one_worse.note
    one_alike = findings(made_study(codi=lambda m, n: plain(m, 4) - (m != 1)))["codi-few-steps"]
    assert one_alike.verdict == CANNOT_TELL


@pytest.mark.parametrize(("shift", "better"), [(0.0, 3), (-20.0, 0)])
def test_what_training_adds_is_told_from_codis_timesteps(shift, better):
    """Undistilled models on CoDi's timesteps: as good as on their own, or (by ``shift``) better than the distilled."""
    study = made_study()
    rows = study.scores
    mine = rows[(rows["task"] == "t2i") & (rows["sampler"] == "ddim") & (rows["steps"] == 4)]
    cells = [Cell.parse(path).at(sampler="codi") for path in mine["cell"]]
    reps = [list(np.asarray(r) + shift) for r in mine["fid_reps"]]
    mine = mine.assign(cell=[c.path for c in cells], sampler="codi", fid=mine["fid"] + shift, fid_reps=reps)
    experiments = {**study.experiments, "codi_timesteps": list(dict.fromkeys(cells))}
    found = distilled_findings(pd.concat([rows, mine], ignore_index=True), experiments)[0]
    assert f"beyond the interval in {better} of 3 models" in found.note
    by_training = [n.value for n in found.numbers if "by training" in n.label]
    whole = [n.value for n in findings(study)["codi-few-steps"].numbers]
    np.testing.assert_allclose(by_training, np.array(whole) - shift)
    assert found.verdict == findings(study)["codi-few-steps"].verdict


def test_what_there_was_to_gain_is_said_where_the_grid_is_unguided_too():
    assert "unguided flow" not in findings(made_study())["codi-few-steps"].note
    study = made_study(cfgs=(1.0, 2.0, 4.0))
    rows = study.scores
    of = rows[(rows["task"] == "t2i") & (rows["split"] == "heldout") & (rows["cfg"] == 1) & (rows["steps"] == 32)]
    said = ", ".join(f"{row.model} {row.fid:.4g}" for row in of.sort_values("params").itertuples())
    assert f"unguided flow, whose FID in 32 steps is {said}:" in findings(study)["codi-few-steps"].note


def test_guided_is_the_student_of_four_steps():
    finding = findings(made_study(guided=lambda m, n, student: 20.0 if student == 4 and n == 4 else 1.0))
    finding = finding["guided-few-steps"]
    assert [n.value for n in finding.numbers] == pytest.approx([20 - plain(m, 4) for m in range(3)])
    none = findings(made_study(students=(16, 8)))["guided-few-steps"]
    assert none.verdict == CANNOT_TELL and "no model both distilled" in none.note


def test_alike_needs_an_interval_within_a_factor_of_two():
    finding = findings(made_study())["codi-acceleration"]
    assert finding.numbers[0].label == "Acceleration factor of 145M over that of 39M"
    assert finding.numbers[0].value == pytest.approx(1) and finding.verdict == SUPPORTED
    assert "39M 4 (" in finding.note and "factor of 2" in finding.note
    # 16 against 5 undistilled steps: more than a factor of two, by less than the noise allows to tell.
    unlike = {"codi": lambda m, n: plain(m, [5, 9, 16][m])}
    assert findings(made_study(**unlike, noise=0.02))["codi-acceleration"].verdict == NOT_SUPPORTED
    assert findings(made_study(**unlike, noise=2.0))["codi-acceleration"].verdict == CANNOT_TELL


def test_alike_beyond_the_grid_cannot_be_told():
    finding = findings(made_study(codi=lambda m, n: 1.0))["codi-acceleration"]
    assert finding.verdict == CANNOT_TELL and "39M more than 8" in finding.note
    # More than 8 against less than 0.5: unlike, though neither is a number.
    found = findings(made_study(codi=lambda m, n: 90.0 if m == 0 else 1.0))["codi-acceleration"]
    assert found.verdict == NOT_SUPPORTED and found.numbers[0].low == pytest.approx(16)


def test_a_small_undistilled_model_gets_the_cost_of_the_largest_distilled():
    finding = findings(made_study(noise=0.01))["codi-small-undistilled"]
    cost, whole = finding.numbers
    # 145M: 4 steps x 1 x 4/3. Then 39M affords 16 steps of a quarter, 83M 8 of a half.
    assert cost.label == "Cost 5.33: FID of 39M undistilled (16 steps) minus FID of 145M distilled (4 steps)"
    assert cost.value == pytest.approx(plain(0, 16) - codi(2, 4)) and finding.verdict == NOT_SUPPORTED
    assert whole.label.startswith("Whole cost 1.57T FLOPs an image: FID of 39M undistilled (16 steps)")
    dear = made_study(steps=(32,), models=[MODELS[2], dataclasses.replace(MODELS[2], name="x", params=10**10)])
    found = findings(dear)["codi-small-undistilled"]
    assert found.verdict == CANNOT_TELL and "No smaller undistilled model" in found.note
    alone = findings(made_study(models=MODELS[:1]))["codi-small-undistilled"]
    assert alone.verdict == CANNOT_TELL


def test_larger_undistilled_models_are_no_smaller_ones():
    # 145M is by far the best, affordable in 2 steps, and not distilled.
    study = made_study(plain=lambda m, n: plain(m, n) - 50 * (m == 2))
    few = study.scores[(study.scores["task"] != "codi") | (study.scores["model"] != "145M")]
    numbers = {f.id: f for f in distilled_findings(few, study.experiments)}["codi-small-undistilled"].numbers
    assert "FID of 39M undistilled" in numbers[0].label and "FID of 83M distilled" in numbers[0].label


def test_tables_without_the_rows_have_no_findings():
    study = made_study()
    rows = {task: study.scores[study.scores["task"].isin(["t2i", task])] for task in ("t2i", "codi", "guided")}
    ids = {task: [f.id for f in distilled_findings(mine, study.experiments)] for task, mine in rows.items()}
    assert ids == {"t2i": [], "codi": ALL[:4], "guided": ALL[4:]}


def test_without_a_grid_only_size_can_be_told():
    study = made_study()
    found = {f.id: f for f in distilled_findings(study.scores, {})}
    assert [id for id, f in found.items() if f.verdict != CANNOT_TELL] == ["codi-size"]
    assert all(f.note for f in found.values())
    one = findings(made_study(models=MODELS[:1]))
    assert [id for id, f in one.items() if f.verdict != CANNOT_TELL] == ["codi-few-steps", "guided-few-steps"]
    long = findings(made_study(few=(8,)))
    assert {f.verdict for f in long.values()} == {CANNOT_TELL}


def test_without_replicates_nothing_can_be_told():
    for finding in findings(made_study(fid_reps=None)).values():
        assert finding.verdict == CANNOT_TELL and "no bootstrap replicates" in finding.note
        assert finding.numbers and all(math.isnan(n.low) for n in finding.numbers)


def test_without_effects_few_verdicts_are_given():
    """A 95% interval may give one false verdict in twenty."""
    given = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        luck = {(m, n): rng.normal() for m in range(3) for n in (*STEPS, "codi", "guided")}
        study = made_study(
            models=MODELS[:1], cfgs=(2.0,), noise=1.0, seed=seed + 100,
            plain=lambda m, n, luck=luck: 30 + luck[m, n],
            codi=lambda m, n, luck=luck: 30 + luck[m, "codi"],
            guided=lambda m, n, student, luck=luck: 30 + luck[m, "guided"],
        )  # fmt: skip
        found = findings(study)
        given += [found[id].verdict != CANNOT_TELL for id in ("codi-few-steps", "guided-few-steps")]
    assert np.mean(given) <= 0.15


def test_an_acceleration_interval_holds_the_truth():
    """Nineteen times in twenty; the scores have the replicates' own noise."""
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        luck = {n: 0.3 * rng.normal() for n in (*STEPS, "codi")}
        study = made_study(
            models=MODELS[:1], cfgs=(2.0,), noise=0.3, seed=seed,
            plain=lambda m, n, luck=luck: plain(m, n) + luck[n],
            codi=lambda m, n, luck=luck: plain(m, 11) + luck["codi"],
        )  # fmt: skip
        scores = study.scores
        codi_rows, t2i = scores[scores["task"] == "codi"], scores[scores["sampler"] == "ddim"]
        (found,) = acceleration(best_setting(codi_rows), best_setting(t2i[t2i["task"] == "t2i"]))
        held.append(found.low <= 11 / 4 <= found.high)
    assert 0.85 <= np.mean(held) <= 1


def test_the_summary_tells_every_finding():
    study = made_study()
    found = list(findings(study).values())
    text = summary_markdown(found, study.study, study.scores.assign(train_gflops=1.0))
    for finding in found:
        assert markdown_text(finding.statement) in text
        for number in finding.numbers:
            assert markdown_text(number) in text


def test_acceleration_of_one_model_is_no_comparison():
    scores = made_study(models=MODELS[:1]).scores
    t2i = scores[(scores["task"] == "t2i") & (scores["sampler"] == "ddim")]
    finding = codi_acceleration(best_setting(scores[scores["task"] == "codi"]), best_setting(t2i))
    assert finding.verdict == CANNOT_TELL and "fewer than two models" in finding.note
