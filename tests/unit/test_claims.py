"""Every claim of claims.yaml on made tables whose right answer is known, both ways, by FID and by another distance."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
import yaml
from synthetic_dreambooth import dreambooth_rows
from synthetic_study import (
    SMALL_FAMILY,
    family,
    fid,
    make_study,
    paper_study,
    rows_between,
    small_study,
    with_interpolation,
)
from synthetic_superres import MODELS, superres_table
from test_distilled_analysis import made_study, plain

from ldmscale.analysis import claims_budget, claims_guidance
from ldmscale.analysis.claims import CLAIMS, Judged, claims_json, evaluate, from_json, judge, load_claims
from ldmscale.analysis.claims_distilled import in_place_of_fid
from ldmscale.analysis.claims_guidance import choice_bias, choice_biases, variance_components
from ldmscale.analysis.claims_text import claims_markdown, disagreements
from ldmscale.analysis.findings import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, Run, every, model_size
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import heldout, replicates, select
from ldmscale.analysis.summary import markdown_text
from ldmscale.cells.cell import Cell
from ldmscale.errors import UserError

CLAIM = {claim.id: claim for claim in load_claims()}


# ---- made runs ------------------------------------------------------------------------------------------------------


def rank(model, models):
    return models.index(model) / (len(models) - 1)


def reversed_size(model, models, train, steps, cfg, sampler):
    return 30 + 8 * rank(model, models)


def unlearning(model, models, train, steps, cfg, sampler):
    return 30 + 14 * train


def advantage_shrinks(model, models, train, steps, cfg, sampler):
    return 40 - (20 if train < 0.9 else 5) * rank(model, models)


def cfg_follows_size(model, models, train, steps, cfg, sampler):
    return 30 + 9 * math.log(cfg / (2 + 4 * rank(model, models))) ** 2


def largest_always(model, models, train, steps, cfg, sampler):
    return 30 - 12 * rank(model, models)


def only_with_ddpm(model, models, train, steps, cfg, sampler):
    formula = largest_always if sampler == "ddpm" else fid
    return formula(model, models, train, steps, cfg, sampler)


def t2i(fid_of=fid, **changes) -> Run:
    study = small_study(fid_of=fid_of, **changes)
    return Run(study.scores, study.experiments)


def mirrored_clip(run: Run) -> Run:
    reps = [[0.6 - value for value in values] for values in run.scores["clip_reps"]]
    return Run(run.scores.assign(clip=0.6 - run.scores["clip"], clip_reps=reps), run.experiments)


def superres(fid=None, **changes) -> Run:
    """Super-resolution of four models, beside text-to-image of five."""
    rows = superres_table(**({"fid": fid} if fid else {}), **changes)
    study = t2i()
    return Run(pd.concat([study.scores, rows], ignore_index=True), study.experiments)


def smaller_is_better(model, step, steps):
    """Finetuning counts for much; with few steps the largest is best, by far."""
    return 20 + (1 if steps >= 20 else -4) * model + 400 / (100 + step)


def dreambooth(score=None) -> Run:
    return Run(dreambooth_rows(MODELS, noise=0.001, **({"score": score} if score else {})), {})


def distilled(**changes) -> Run:
    study = made_study(**changes)
    return Run(study.scores, study.experiments)


def one_is_worse(model, steps, *_):
    return plain(model, 4) + (1 if model == 2 else -7)


def interpolation(straight_first: bool) -> Run:
    """Ways between two prompts, the more bent the larger the model, or the smaller."""
    study = with_interpolation(small_study(), [("a", "b"), ("c", "d")])
    cells = study.experiments["interpolation"]
    bends = [0, 1, 2, 3, 4] if straight_first else [4, 3, 2, 1, 0]
    tables = [
        rows_between(lambda a, bent=bent: a ** (1 + bent / 2), pair=pair, noise=0.002, cell=cell.path,
                     task=cell.task, model=cell.model, params=i, split="interpolation")
        for i, (cell, bent) in enumerate(zip(cells, bends, strict=True)) for pair in range(2)
    ]  # fmt: skip
    return Run(pd.concat(tables, ignore_index=True), {"interpolation": cells})


# id -> (a run that bears the claim out, one that refutes it)
MADE = {
    "training-fid": (t2i, lambda: t2i(unlearning)),
    "training-clip": (t2i, lambda: mirrored_clip(t2i())),
    "early-gap": (t2i, lambda: t2i(reversed_size)),
    "training-settles": (t2i, lambda: t2i(advantage_shrinks)),
    "model-size": (t2i, lambda: t2i(reversed_size)),
    "model-size-clip": (t2i, lambda: mirrored_clip(t2i())),
    "fid-and-clip": (t2i, lambda: mirrored_clip(t2i())),
    "guidance": (t2i, lambda: t2i(cfg_follows_size)),
    "small-budget-ddim": (t2i, lambda: t2i(largest_always)),
    "large-budget-ddim": (t2i, lambda: t2i(reversed_size)),
    "small-budget-ddpm": (t2i, lambda: t2i(largest_always)),
    "small-budget-dpmpp2m": (t2i, lambda: t2i(largest_always)),
    "sampler-independence": (t2i, lambda: t2i(only_with_ddpm)),
    "superres-size": (superres, lambda: superres(smaller_is_better)),
    "superres-perceptual": (superres, lambda: superres(smaller_is_better)),
    "superres-inception": (superres, lambda: superres(smaller_is_better)),
    "superres-follows": (superres, lambda: superres(smaller_is_better)),
    "superres-longer": (superres, lambda: superres(smaller_is_better)),
    "superres-small-budget": (superres, lambda: superres(smaller_is_better)),
    "superres-large-budget": (superres, lambda: superres(smaller_is_better)),
    "dreambooth-size": (dreambooth, lambda: dreambooth(lambda m, s, _: 0.5 - 0.03 * m + 0.1 * (s > 0))),
    "dreambooth-tiers": (  # the tiers divide before the fourth model
        lambda: dreambooth(lambda m, s, _: 0.3 + 0.2 * (m > 2)),
        lambda: dreambooth(lambda m, s, _: 0.3 + 0.2 * min(m, 2)),
    ),
    "codi-few-steps": (distilled, lambda: distilled(codi=one_is_worse)),
    "codi-acceleration": (distilled, lambda: distilled(codi=lambda m, n: plain(m, [32, 12, 6][m]))),
    "codi-factor": (distilled, lambda: distilled(codi=lambda m, n: plain(m, 5))),
    "codi-size": (distilled, lambda: distilled(codi=lambda m, n: 20 + m)),
    "codi-small-undistilled": (
        lambda: distilled(plain=lambda m, n: 40 - 0.1 * m - 4 * math.log2(n), codi=lambda m, n: 28.5 - 0.1 * m),
        lambda: distilled(codi=lambda m, n: 5.0),
    ),
    "guided-few-steps": (distilled, lambda: distilled(guided=one_is_worse)),
    "interpolation": (lambda: interpolation(False), lambda: interpolation(True)),
}


@cache
def made(id: str, side: int) -> Run:
    return MADE[id][side]()


def with_distance(run: Run, name: str, of: Run) -> Run:
    """``run`` with another distance, a multiple of the FID of ``of``, which has the same cells."""
    key = ["cell", "split"]
    other = of.scores.drop_duplicates(key).set_index(key).reindex(pd.MultiIndex.from_frame(run.scores[key]))
    values, reps = other["fid"].to_numpy(), other["fid_reps"].tolist()
    reps = [[0.1 * r for r in one] if np.ndim(one) else None for one in reps]
    return Run(run.scores.assign(**{name: 0.1 * values, f"{name}_reps": reps}), run.experiments)


# ---- every claim ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", CLAIM)
def test_a_claim_that_holds_is_supported_and_one_that_does_not_is_not(id):
    claim = CLAIM[id]
    for side, verdict in enumerate((SUPPORTED, NOT_SUPPORTED)):
        found = judge(claim, made(id, side), claim.metrics[0])
        assert found.verdict == verdict, found.note
        assert found.numbers and found.statement == claim.statement and found.section == claim.section


@pytest.mark.parametrize("id", [id for id, claim in CLAIM.items() if "cmmd" in claim.metrics and id != "fid-and-clip"])
def test_another_distance_is_judged_by_itself(id):
    """The same run may bear a claim out by FID and refute it by CMMD: each chooses and reports by its own numbers."""
    for side, verdicts in enumerate([(SUPPORTED, NOT_SUPPORTED), (NOT_SUPPORTED, SUPPORTED)]):
        run = with_distance(made(id, side), "cmmd", made(id, 1 - side))
        (found,) = evaluate(run.scores, run.experiments, [CLAIM[id]])
        assert (found.finding.verdict, found.under["cmmd"].verdict) == verdicts
        assert list(found.under) == ["cmmd"]
        told = found.under["cmmd"].note + str(found.under["cmmd"].numbers)
        assert "FID" not in told
        assert f"**{verdicts[1]}**" in disagreements([found])


def test_agreement_with_clip_is_told_of_every_distance():
    run = made("fid-and-clip", 0)
    (found,) = evaluate(*astuple(with_distance(run, "cmmd", run)), [CLAIM["fid-and-clip"]])
    assert found.under["cmmd"].verdict == SUPPORTED and "CMMD and CLIP score" in found.under["cmmd"].note


def astuple(run: Run):
    return run.scores, run.experiments


@pytest.mark.parametrize("id", CLAIM)
def test_a_claim_on_what_the_run_has_not_cannot_be_told(id):
    other = dreambooth_rows(MODELS) if CLAIM[id].task != "dreambooth" else small_study().scores
    (found,) = evaluate(other, {}, [CLAIM[id]])
    assert found.finding.verdict == CANNOT_TELL and "not part of this run" in found.finding.note and not found.under


def without_replicates(run: Run) -> Run:
    columns = [column for column in run.scores if column.endswith("_reps")]
    return Run(run.scores.assign(**dict.fromkeys(columns)), run.experiments)


OWN_DRAWS = ("dreambooth", "interpolation")  # these resample lists in the table


@pytest.mark.parametrize("id", [id for id, claim in CLAIM.items() if claim.task not in OWN_DRAWS])
def test_without_replicates_nothing_can_be_told(id):
    for side in (0, 1):
        found = judge(CLAIM[id], without_replicates(made(id, side)), CLAIM[id].metrics[0])
        assert found.verdict == CANNOT_TELL and "no bootstrap replicates" in found.note
        assert found.numbers


@pytest.mark.parametrize("id", [id for id, claim in CLAIM.items() if "fid_inf" in claim.metrics])
def test_a_distance_without_replicates_beside_one_with_them_cannot_be_told(id):
    run = with_distance(made(id, 0), "fid_inf", made(id, 0))
    (found,) = evaluate(run.scores.drop(columns="fid_inf_reps"), run.experiments, [CLAIM[id]])
    assert found.finding.verdict == SUPPORTED and found.under["fid_inf"].verdict == CANNOT_TELL


def test_the_papers_family_is_judged_as_the_small_one():
    study = paper_study(noise=0.05, point_noise=0.02)
    for claim in CLAIM.values():
        if claim.task == "t2i":
            assert judge(claim, Run(study.scores, study.experiments), claim.metrics[0]).verdict == SUPPORTED


def test_without_effects_few_verdicts_are_given():
    """Under no effect at all, at most about one verdict in ten may be a false one."""
    given = []
    ids = [id for id, c in CLAIM.items() if c.task == "t2i" and c.compares != "training"]
    # CLIP score is FID mirrored in these tables, so that they agree, noise and all.
    ids = [id for id in ids if id not in ("model-size-clip", "fid-and-clip")]
    for seed in range(8):
        study = make_study(
            family(SMALL_FAMILY[:3], 0.0135), (2, 8, 32), (2.0, 4.0, 6.0), headline=(8, 4.0), seed=seed, replicates=60,
            fid_of=lambda *_: 30.0, noise=3.0, point_noise=3.0,
            checkpoints=(1000, 2000),
        )  # fmt: skip
        run = Run(study.scores, study.experiments)
        given += [judge(CLAIM[id], run, "fid").verdict != CANNOT_TELL for id in ids]
    assert np.mean(given) <= 0.12


# ---- the file -------------------------------------------------------------------------------------------------------


def test_every_claim_says_what_it_must():
    assert len(CLAIM) >= 25
    for claim in CLAIM.values():
        assert claim.statement and claim.refuted_by.endswith(".") and claim.metrics
        # A claim that rests on FID is judged by CMMD too, where cells are of the study's prompts.
        if claim.metrics[0] == "fid" and claim.task in ("t2i", "codi", "guided"):
            assert "cmmd" in claim.metrics


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test": "hope"}, "test 'hope'"),
        ({"metrics": ["beauty"]}, "metric 'beauty'"),
        ({"task": "t2v"}, "task 't2v'"),
        ({"compares": "notes"}, "compares 'notes'"),
        ({"colour": "red"}, "see 'colour'"),
        ({"refuted_by": None}, "see 'refuted_by'"),
        ({"id": "training-clip"}, "'training-clip'.* twice"),
    ],
)
def test_a_faulty_claim_is_named(tmp_path, change, said):
    entries = yaml.safe_load(CLAIMS.read_text())
    entries[0] = {key: value for key, value in {**entries[0], **change}.items() if value is not None}
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(UserError, match=said):
        load_claims(path)


def test_what_was_judged_survives_the_file():
    run = made("training-fid", 0)
    judged = evaluate(*astuple(with_distance(run, "cmmd", run)), list(CLAIM.values()))
    text = json.dumps(claims_json(judged), allow_nan=False)
    again = from_json(json.loads(text))
    assert [repr(each) for each in again] == [repr(each) for each in judged]
    bare = evaluate(*astuple(without_replicates(run)), [CLAIM["model-size"]])
    (again,) = from_json(json.loads(json.dumps(claims_json(bare), allow_nan=False)))
    assert all(math.isnan(n.low) for n in again.finding.numbers)
    bends = evaluate(*astuple(made("codi-acceleration", 1)), [CLAIM["codi-acceleration"]])
    assert repr(from_json(json.loads(json.dumps(claims_json(bends), allow_nan=False)))) == repr(bends)


# ---- tests of claims, one by one ------------------------------------------------------------------------------------


def test_all_must_hold_and_one_refutes():
    assert every([SUPPORTED] * 2, [SUPPORTED] * 2) == SUPPORTED
    assert every([SUPPORTED, CANNOT_TELL], [CANNOT_TELL] * 2) == CANNOT_TELL
    assert every([SUPPORTED, NOT_SUPPORTED], [SUPPORTED, CANNOT_TELL]) == CANNOT_TELL
    assert every([SUPPORTED, NOT_SUPPORTED], [SUPPORTED, NOT_SUPPORTED]) == NOT_SUPPORTED


def test_one_reversed_step_in_size_refutes_monotone_improvement():
    def bump(model, models, *_):
        return [40.0, 30.0, 36.0, 20.0, 10.0][models.index(model)]

    run = t2i(bump)
    finding = model_size(run.scores, run.experiments["headline"])
    assert finding.numbers[0].high < 0  # the slope is down
    assert finding.verdict == NOT_SUPPORTED and "It rises beyond the interval from f12 to f16" in finding.note
    clip = model_size(run.scores, run.experiments["headline"], "clip")
    assert clip.numbers[0].low > 0 and clip.verdict == NOT_SUPPORTED
    assert "CLIP score rises at 3 of the 4" in clip.note and "falls beyond the interval from f12 to f16" in clip.note


def test_intervals_are_paired_over_cells():
    """The luck of the prompts is common to all cells: differences must be far surer than the cells by themselves."""
    run = t2i()
    rows = heldout(select(run.scores, run.experiments["headline"]))
    alone = [np.diff(interval(v, r))[0] for v, r in zip(rows["fid"], replicates(rows, "fid"), strict=True)]
    ends = model_size(run.scores, run.experiments["headline"]).numbers[1]
    assert ends.high - ends.low < 0.6 * min(alone)


def test_the_first_checkpoint_is_the_first():
    def overtaken(model, models, train, *_):
        return 40 + (10 if train < 0.5 else -10) * rank(model, models)

    found = judge(CLAIM["early-gap"], t2i(overtaken), "fid")
    assert found.verdict == NOT_SUPPORTED and "At training step 250 of 2000" in found.note


@pytest.mark.parametrize(
    ("early", "verdict"), [(5, SUPPORTED), (20, NOT_SUPPORTED), (10, CANNOT_TELL), (-5, NOT_SUPPORTED)]
)
def test_what_size_is_worth_settles_within_a_factor(early, verdict):
    def advantage(model, models, train, *_):
        return 40 - (5 if train > 0.9 else early) * rank(model, models)

    found = judge(CLAIM["training-settles"], t2i(advantage, noise=0.6), "fid")
    assert found.verdict == verdict and found.numbers[0].value == pytest.approx(early / 5, abs=0.3 + abs(early) / 20)
    assert "step 1000, over what it is at step 2000" in found.numbers[0].label  # 500 is before 40 %


def test_nothing_settles_where_size_is_worth_nothing():
    found = judge(CLAIM["training-settles"], t2i(lambda *_: 30.0, noise=1.0), "fid")
    assert found.verdict == CANNOT_TELL and "nothing to settle" in found.note


def test_a_largest_model_that_wins_at_every_budget():
    for id in ("small-budget-ddim", "small-budget-ddpm", "small-budget-dpmpp2m"):
        found = judge(CLAIM[id], made(id, 1), "fid")
        assert found.numbers[0].value == pytest.approx(3, abs=0.6)
        turn = next(n for n in found.numbers if n.label.startswith("Cost from which"))
        assert turn.value == 2.0  # the smallest cost at which the largest model was sampled
    found = judge(CLAIM["large-budget-ddim"], made("small-budget-ddim", 1), "fid")
    assert found.verdict == SUPPORTED and found.numbers[0].label.startswith("Cost 40: FID of f24")


def test_budgets_need_two_models_and_the_sampler():
    run = t2i()
    few = {name: [c for c in cells if c.model == "f8"] for name, cells in run.experiments.items()}
    for id in ("small-budget-ddim", "large-budget-ddim", "sampler-independence"):
        assert judge(CLAIM[id], Run(run.scores, few), "fid").verdict == CANNOT_TELL
    with pytest.raises(claims_budget.Unclear, match="fewer than two models drawn by DDPM"):
        claims_budget.small_budget(run, "fid", "grid", "ddpm")


def test_samplers_compare_at_settings_that_all_have():
    """A sampler that alone was drawn at a better guidance weight and fewer steps has no more to choose from."""
    run = t2i()
    few = [c for c in run.experiments["samplers"] if c.steps >= 8 and c.cfg <= 2.5]
    found = judge(CLAIM["sampler-independence"], Run(run.scores, {**run.experiments, "samplers": few}), "fid")
    assert [n.label.partition(":")[0] for n in found.numbers] == [
        "DDIM, cost 8", "DDPM, cost 8", "DPM-Solver++, cost 8"]  # fmt: skip
    alone = {**run.experiments, "samplers": [c.at(sampler="ddim") for c in few]}
    assert "by two samplers" in judge(CLAIM["sampler-independence"], Run(run.scores, alone), "fid").note


def test_samplers_that_agree_on_the_largest_agree_too():
    found = judge(CLAIM["sampler-independence"], t2i(largest_always), "fid")
    assert found.verdict == SUPPORTED and "worse with 3" in found.note


def test_guidance_needs_a_whole_grid():
    run = t2i()
    one = {"grid": [c for c in run.experiments["grid"] if c.cfg == 4.0]}
    assert "one guidance weight only" in judge(CLAIM["guidance"], Run(run.scores, one), "fid").note
    hole = {"grid": [c for c in run.experiments["grid"] if (c.model, c.steps) != ("f8", 4)]}
    assert "every combination" in judge(CLAIM["guidance"], Run(run.scores, hole), "fid").note


def test_variance_components():
    steps, models = np.array([1.0, 3.0, 5.0]), np.array([0.0, 0.0, 3.0])
    exact = variance_components(steps[:, None] + models[None])
    np.testing.assert_allclose(exact, [models.var(ddof=1), steps.var(ddof=1)])
    # Noise alone favours neither factor, whatever the table's shape.
    rng = np.random.default_rng(1)
    noise = np.mean([variance_components(rng.normal(size=(4, 11))) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(noise, 0, atol=0.02)


@pytest.mark.parametrize(("steps", "verdict"), [(5, NOT_SUPPORTED), (24, SUPPORTED), (None, CANNOT_TELL)])
def test_a_factor_of_about_five_beyond_the_grid(steps, verdict):
    """Factors to 8 are within the grid; "more than 8" may be 9 or 90."""
    run = distilled(codi=lambda m, n: plain(m, steps) if steps else 1.0)
    assert judge(CLAIM["codi-factor"], run, "fid").verdict == verdict
    longer = distilled(codi=lambda m, n: 1.0, steps=(2, 4, 8, 16, 32, 64))  # "more than 16" is more than 10
    assert judge(CLAIM["codi-factor"], longer, "fid").verdict == NOT_SUPPORTED


def test_a_gain_is_no_distance():
    with pytest.raises(ValueError, match="clip is no distance"):
        in_place_of_fid(made("codi-size", 0).scores, "clip")


def test_downstream_ranks_need_four_models():
    run = superres()
    three = run.scores[run.scores["model"].isin(["f8", "f12", "f16"])]
    cells = {"headline": [c for c in run.experiments["headline"] if c.model in ("f8", "f12", "f16")]}
    found = judge(CLAIM["superres-follows"], Run(three, cells), "fid")
    assert found.verdict == CANNOT_TELL and "fewer than 4 models" in found.note


# ---- choosing on what is reported -----------------------------------------------------------------------------------


def weights_table(rng, truth, noise, sizes=(1.0, 1.0), groups=1, replicates=100) -> pd.DataFrame:
    """Cells of ``groups`` step counts, each at weights of FIDs ``truth``; ``sizes`` scale the splits' noise."""
    rows = []
    for steps in range(1, groups + 1):
        for cfg, value in enumerate(truth, 1):
            cell = Cell("t2i", "m", "pretrain-1", "ddim", steps, float(cfg))
            for split, scale in zip(("heldout", "tuning"), sizes, strict=True):
                shown = value + 5 * scale + noise * scale * rng.normal()  # FID of fewer images is larger
                reps = 1.1 * shown + noise * scale * rng.normal(size=replicates)
                rows.append({"cell": cell.path, **dataclasses.asdict(cell), "split": split, "fid": shown,
                             "fid_reps": reps.tolist()})  # fmt: skip
    return pd.DataFrame(rows)


def least_of(count: int) -> float:
    """The mean of the least of ``count`` standard normals."""
    return float(np.random.default_rng(0).normal(size=(200_000, count)).min(axis=1).mean())


@pytest.mark.parametrize("sizes", [(1.0, 1.0), (0.5, 2.0)])
def test_the_bias_of_the_best_of_eight_is_that_of_the_least_of_eight(sizes):
    """Eight weights that are alike: the best looks better by the least of eight normals, whatever the splits' sizes."""
    table = weights_table(np.random.default_rng(7), [30.0] * 8, 1.0, sizes, groups=400, replicates=2)
    both, held, tuning = choice_bias(table)
    expected = least_of(8)
    assert both.value == pytest.approx(expected * np.mean(sizes), abs=0.12)
    assert held.value == pytest.approx(expected * sizes[0], abs=0.12)
    assert tuning.value == pytest.approx(expected * sizes[1], abs=0.2)


def test_what_the_poorer_choice_costs_is_no_bias():
    """With weights that differ, each half is off by the cost of the other split's choice, and their mean is not."""
    truth = np.array([30.0, 30.5, 31.0, 31.5])
    rng = np.random.default_rng(5)
    draws = truth + rng.normal(size=(200_000, 4))
    wanted = (draws.min(axis=1) - truth[draws.argmin(axis=1)]).mean()
    noisy = truth + 3 * rng.normal(size=(200_000, 4))
    wanted_noisy = (noisy.min(axis=1) - truth[noisy.argmin(axis=1)]).mean()
    table = weights_table(np.random.default_rng(6), truth, 1.0, (1.0, 3.0), groups=600, replicates=2)
    both, held, _ = choice_bias(table)
    assert both.value == pytest.approx((wanted + wanted_noisy) / 2, abs=0.12)
    assert held.value < wanted - 0.15  # alone it would overstate


def test_there_is_no_bias_where_one_weight_is_far_the_best_or_alone():
    rng = np.random.default_rng(0)
    both, held, tuning = choice_bias(weights_table(rng, [30.0, 50.0, 70.0], 0.5, groups=4))
    assert both.value == held.value == tuning.value == 0
    assert choice_bias(weights_table(rng, [30.0], 0.5)) == []
    assert "mean over 4 models and step counts" in both.label


def test_the_interval_of_the_bias_holds_the_truth():
    expected, held = least_of(4), []
    for seed in range(60):
        table = weights_table(np.random.default_rng(seed), [30.0] * 4, 1.0, groups=8)
        both, *_ = choice_bias(table)
        held.append(both.low <= expected <= both.high)
    assert np.mean(held) >= 0.85


def test_biases_are_of_metrics_that_the_table_has():
    run = t2i()
    found = choice_biases(run, "grid", ("fid", "cmmd", "clip"))
    assert list(found) == ["fid", "clip"] and found["fid"][0].value <= 0 <= found["clip"][0].value
    assert choice_biases(Run(run.scores, {}), "grid", ("fid",)) == {}
    assert claims_guidance.choice_bias(run.scores[run.scores["split"] == "heldout"]) == []


# ---- words ----------------------------------------------------------------------------------------------------------


def judged_with_cmmd(other: str) -> list[Judged]:
    run = with_distance(made("training-fid", 0), "cmmd", made(other, 1))
    return evaluate(*astuple(run), list(CLAIM.values()))


def test_claims_md_says_every_claim_number_and_refutation():
    study = small_study()
    judged = judged_with_cmmd("model-size")
    text = claims_markdown(judged, choice_biases(made("training-fid", 0), "grid", ("fid",)), study.study)
    for each in judged:
        assert f"`{each.claim.id}`" in text and markdown_text(each.claim.refuted_by) in text
        assert markdown_text(each.claim.statement) in text
        for finding in (each.finding, *each.under.values()):
            assert all(markdown_text(number) in text for number in finding.numbers)
    assert "one seed" in text and "training them again could change the answer" in text
    assert "chosen and reported on the same prompts minus chosen on others" in text
    assert "256 held-out or 128 tuning" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace(r"\|", "").count("|") in (4, 5)


def test_disagreement_is_counted():
    judged = [each for each in judged_with_cmmd("model-size") if each.claim.id in ("model-size", "large-budget-ddim")]
    text = disagreements(judged)
    assert "of 2 claims that rest on FID, it gives 0 the same verdict and 2 the opposite one" in text
    agree = evaluate(*astuple(with_distance(t2i(), "cmmd", t2i())), [CLAIM["model-size"]])
    assert "it gives 1 the same verdict and 0" in disagreements(agree) and "| Claim" not in disagreements(agree)
    assert disagreements(evaluate(*astuple(t2i()), [CLAIM["model-size"]])) == ""


def test_what_one_metric_alone_can_tell_is_said():
    run = with_distance(t2i(), "cmmd", t2i())
    blurred = Run(run.scores.assign(cmmd_reps=None), run.experiments)
    text = disagreements(evaluate(*astuple(blurred), [CLAIM["model-size"]]))
    assert "on 1 FID alone can tell, on 0 CMMD alone" in text
