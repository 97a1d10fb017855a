"""Findings and checks of super-resolution and DreamBooth on made tables whose right answers are known, both ways."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from synthetic_dreambooth import PROMPTS, dreambooth_rows, with_dreambooth
from synthetic_study import PAPER_FAMILY, family, small_study, with_interpolation
from synthetic_superres import CURVE, MODELS, SWEEP, baseline, scales, superres_table

from ldmscale.analysis.claims import evaluate, judge, load_claims
from ldmscale.analysis.downstream import checks
from ldmscale.analysis.findings import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, Run
from ldmscale.analysis.study import models_of
from ldmscale.analysis.summary import markdown_text, summary_markdown
from ldmscale.errors import UserError

CLAIM = {claim.id: claim for claim in load_claims()}
ALL = ["superres-size", "superres-longer", "dreambooth-size", "superres-small-budget"]


def judged(scores: pd.DataFrame, id: str):
    return judge(CLAIM[id], Run(scores, {}), CLAIM[id].metrics[0])


def verdicts(scores: pd.DataFrame) -> dict[str, str]:
    return {id: judged(scores, id).verdict for id in ALL if CLAIM[id].task in set(scores["task"])}


def test_tables_without_the_rows_have_no_checks():
    assert checks(small_study().scores) == []


def test_without_effects_few_verdicts_are_given():
    """A 95% interval may give one false verdict in twenty, a finding of several tests about two."""
    given = []
    for seed in range(12):
        noise = np.random.default_rng(seed)
        scores = superres_table(lambda *_, noise=noise: 30 + 3 * noise.normal(), noise=3.0, seed=seed + 100)
        given += [v != CANNOT_TELL for v in verdicts(scores).values()]
        rows = dreambooth_rows(MODELS[:2], score=lambda *_: 0.5, noise=0.1, seed=seed)
        given += [v != CANNOT_TELL for v in verdicts(rows).values()]
    assert np.mean(given) <= 0.15


# ---- super-resolution -----------------------------------------------------------------------------------------------


def test_size_is_judged_after_the_same_finetuning():
    rows = superres_table()
    longer = superres_table(lambda *_: 1.0, MODELS[:1], checkpoints=(800,))  # only the smallest was finetuned so long
    finding = judged(pd.concat([rows, longer]), "superres-size")
    assert finding.verdict == SUPPORTED
    ends = next(n for n in finding.numbers if n.label == "FID of f24 minus FID of f8")
    assert ends.value == pytest.approx(-4 * 3 + 12 * 3 / CURVE) and ends.low < ends.value < ends.high
    assert ends.high - ends.low < 0.5  # paired: the shared luck alone is 4 wide
    assert "After 400 finetuning steps, 20-step DDIM" in finding.note
    perceptual = judged(rows, "superres-perceptual")
    assert perceptual.numbers[1].label == "Perceptual distance of f24 minus perceptual distance of f8"
    assert perceptual.numbers[1].value == pytest.approx(ends.value / 100)
    assert "perceptual distance by LPIPS AlexNet" in perceptual.note
    inception = judged(rows, "superres-inception")
    assert inception.numbers[0].low > 0 and inception.verdict == SUPPORTED and "by made-up classes" in inception.note


def test_one_reversed_step_in_size_refutes_it():
    finding = judged(superres_table(lambda model, *_: [40.0, 20.0, 25.0, 10.0][model]), "superres-size")
    assert finding.numbers[0].high < 0 and finding.verdict == NOT_SUPPORTED and "f12 to f16" in finding.note


def test_longer_finetuning_is_twice_as_long_at_least():
    rows = superres_table()
    finding = judged(rows, "superres-longer")
    first, end = finding.numbers
    assert first.label == "FID of f24 after 200 finetuning steps minus the best FID of f8, after 400 of 400"
    assert first.value == pytest.approx(scales(3, 200, CURVE) - scales(0, 400, CURVE))
    # 400 steps of the smallest (0.0042 GFLOPs) do not pay 100 of the largest (0.0286), so no same compute.
    assert end.label == "At the end: FID of f24 after 400 finetuning steps minus the best FID of f8, after 400 of 400"


def test_within_the_same_compute_the_large_model_has_fewer_steps():
    models = [dataclasses.replace(m, gflops=g) for m, g in zip(MODELS[:2], (1.0, 3.0), strict=True)]
    finding = judged(superres_table(models=models), "superres-longer")
    labels = [n.label for n in finding.numbers]
    assert labels[1].startswith("Within the same finetuning compute: FID of f12 after 100 finetuning steps")
    assert labels[2].startswith("At the end: FID of f12 after 400 finetuning steps")
    assert finding.numbers[1].value == pytest.approx(scales(1, 100, CURVE) - scales(0, 400, CURVE))


def test_the_small_models_best_checkpoint_counts_and_is_said_to_be_chosen():
    def worse_at_last(model, step, steps):
        return {0: 50.0, 100: 40.0, 200: 5.0, 400: 45.0}[step] if model == 0 else 20.0

    finding = judged(superres_table(worse_at_last), "superres-longer")
    assert finding.verdict == NOT_SUPPORTED and finding.numbers[0].value == pytest.approx(15)
    assert "after 200 of 400" in finding.note and "chosen on the patches that it is reported on" in finding.note


def test_longer_finetuning_needs_checkpoints():
    finding = judged(superres_table(checkpoints=(0, 400)), "superres-longer")
    assert finding.verdict == CANNOT_TELL and "no checkpoint at half of f8's 400 finetuning steps" in finding.note
    one = superres_table(models=MODELS[:1])
    assert set(verdicts(one).values()) == {CANNOT_TELL}
    untrained = superres_table(checkpoints=(0,))
    assert set(verdicts(untrained).values()) == {CANNOT_TELL}
    assert "no finetuning step common" in judged(untrained, "superres-size").note


def test_the_small_budget_takes_the_most_steps_that_a_cost_affords():
    models = [dataclasses.replace(m, norm_cost=c) for m, c in zip(MODELS[:3], (0.25, 0.5, 1.0), strict=True)]
    calls = superres_table(lambda model, step, steps: 10.0 + model + 40 / steps, models)
    finding = judged(calls, "superres-small-budget")
    assert finding.verdict == SUPPORTED
    # The largest costs 4 in 4 steps; the smallest could pay 16, of which 10 were sampled; the next 8.
    assert [n.label for n in finding.numbers[:2]] == [
        "Cost 4: FID of f8 (10 steps) minus FID of f16 (4 steps)",
        "Cost 4: FID of f12 (8 steps) minus FID of f16 (4 steps)",
    ]
    assert [n.value for n in finding.numbers[:2]] == pytest.approx([14 - 22, 16 - 22])
    # Above, the best smaller model is a choice, and named as one; 40 steps are not few.
    assert [n.label.partition(":")[0] for n in finding.numbers[2:]] == ["Cost 8", "Cost 10", "Cost 20"]
    assert all("chosen on the same patches" in n.label for n in finding.numbers[2:])
    assert "which f16 spends in 4 steps, 2 of 2 smaller models are better" in finding.note


def test_the_small_budget_is_refuted_only_if_every_smaller_model_is_worse():
    def middling(model, step, steps):
        return [50.0, 20.3, 20.0][model]

    models = [dataclasses.replace(m, norm_cost=c) for m, c in zip(MODELS[:3], (0.25, 0.5, 1.0), strict=True)]
    finding = judged(superres_table(middling, models, noise=1.0), "superres-small-budget")
    assert finding.verdict == CANNOT_TELL and "0 of 2 smaller models are better" in finding.note
    assert judged(superres_table(middling, models, noise=0.02), "superres-small-budget").verdict == NOT_SUPPORTED


def test_many_smaller_models_do_not_make_a_win_of_luck():
    """Ten smaller models alike with the largest: at a shared level, seldom does one of them "win"."""
    models = family(PAPER_FAMILY, 804.3)
    wins = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        luck = {i: rng.normal() for i in range(len(models))}
        rows = superres_table(lambda model, *_, luck=luck: 30 + luck[model], models, (400,), noise=1.0, seed=seed)
        wins += judged(rows, "superres-small-budget").verdict == SUPPORTED
    assert wins <= 4


def test_a_small_budget_needs_few_steps_of_two_models():
    rows = superres_table()
    for some in (rows[rows["steps"] > 20], rows.assign(sampler="ddpm"), rows[rows["model"] == "f8"]):
        finding = judged(some, "superres-small-budget")
        assert finding.verdict == CANNOT_TELL and "at most 20 steps" in finding.note
    dear = rows[(rows["model"] == "f24") | (rows["steps"] == 20)].assign(norm_cost=1.0, cost=lambda r: r["steps"])
    dear = dear[(dear["model"] != "f24") | (dear["steps"] == 4)]
    assert "No smaller model was sampled at a cost at which f24 was" in judged(dear, "superres-small-budget").note


# ---- DreamBooth -----------------------------------------------------------------------------------------------------


def test_dreambooth_names_the_networks_and_the_largest_rise():
    def tiers(model, step, measure):
        return 0.3 + 0.2 * (model >= 2) + 0.1 * (step > 0)

    finding = judged(dreambooth_rows(MODELS, score=tiers, noise=0.001), "dreambooth-size")
    assert finding.verdict == SUPPORTED
    assert finding.numbers[0].label == "DINO of f24 minus DINO of f8"
    assert finding.numbers[0].value == pytest.approx(0.2, abs=0.005)
    assert "largest rise from one size to the next: DINO of f16 minus DINO of f12" in finding.note
    assert "DINO by tiny-clip image features, CLIP-I by tiny-clip" in finding.note
    labels = [n.label for n in finding.numbers]
    assert [f"{m} of f24 minus {m} of f8" in labels for m in ("CLIP-I", "CLIP-T", "PRES", "DIV")] == [True] * 4


def test_dreambooth_of_one_model_cannot_tell():
    finding = judged(dreambooth_rows(MODELS[:1]), "dreambooth-size")
    assert finding.verdict == CANNOT_TELL and "two or more models" in finding.note
    finding = judged(dreambooth_rows(MODELS, steps=(0,)), "dreambooth-size")
    assert finding.verdict == CANNOT_TELL


def test_dreambooth_is_judged_at_the_setting_with_the_checkpoints():
    once = dreambooth_rows(MODELS, steps=(200,), score=lambda model, *_: -model, sampling=("ddim", 50, 7.5))
    finding = judged(pd.concat([once, dreambooth_rows(MODELS)]), "dreambooth-size")
    assert finding.verdict == SUPPORTED and "20-step DDIM" in finding.note


# ---- checks ---------------------------------------------------------------------------------------------------------


def test_checks_hold_where_finetuning_works():
    scores = pd.concat([superres_table(), dreambooth_rows(MODELS, noise=0.001)])
    found = checks(scores, [baseline("reconstruction", 3.0), baseline("bicubic", 90.0)])
    assert [c.counts for c in found] == [(4, 0)] * 6
    falls, floor, *_, dino, clip_i = found
    assert [n.value for n in falls.numbers] == pytest.approx([scales(m, 400, CURVE) - scales(m, 0, CURVE)
                                                              for m in range(4)])  # fmt: skip
    assert [n.label for n in floor.numbers] == ["f8", "f12", "f16", "f24"]
    assert [n.value for n in floor.numbers] == pytest.approx([scales(m, 400, CURVE) - 3 for m in range(4)])
    assert "reconstruction 3, bicubic 90" in floor.beside
    assert all(n.value == pytest.approx(0.1, abs=0.005) for n in dino.numbers + clip_i.numbers)
    assert "real images among themselves: 0.8" in dino.beside


def test_checks_fail_where_it_does_not():
    def unlearns(model, step, steps):
        return 30.0 + step / 100 if model < 3 else 30.0

    scores = pd.concat([superres_table(unlearns), dreambooth_rows(MODELS, score=lambda m, s, _: 0.5 - s / 1000)])
    found = checks(scores, [baseline("reconstruction", 80.0)])
    assert [c.counts for c in found] == [(0, 3), (0, 4), (0, 3), (0, 4), (0, 4), (0, 4)]


def test_checks_need_what_they_compare():
    later = superres_table(checkpoints=(200, 400))
    assert checks(later) == []
    assert [c.statement.split(": ")[1][:8] for c in checks(later, [baseline("reconstruction", 3.0)])] == [
        "FID stay", "the perc"]  # fmt: skip
    with pytest.raises(UserError, match="differ in length"):
        checks(later, [{**baseline("reconstruction", 3.0), "fid_reps": [1.0, 2.0]}])


# ---- summary --------------------------------------------------------------------------------------------------------


def findings(scores, experiments):
    found = evaluate(scores, experiments, load_claims())
    return [each.finding for each in found if each.claim.task in set(scores["task"])]


def test_the_summary_of_text_to_image_alone_is_as_it_was():
    study = small_study()
    found = findings(study.scores, study.experiments)
    text = summary_markdown(found, study.study, study.scores)
    assert "Checks" not in text and "DreamBooth" not in text and "uper-resolution" not in text
    assert f"| Measured settings | {study.scores['cell'].nunique()} |" in text
    between = with_interpolation(study, [("a", "b")])
    changed = summary_markdown(found, between.study, between.scores).splitlines()
    differ = [(a, b) for a, b in zip(text.splitlines(), changed, strict=True) if a != b]
    assert len(differ) == 1 and "of text-to-image" in differ[0][1]


def test_other_tasks_do_not_leak_into_the_head_but_are_told():
    study = with_dreambooth(small_study())
    alone = small_study()
    scores = pd.concat([superres_table(), study.scores], ignore_index=True)
    baselines = [baseline("reconstruction", 3.0), baseline("bicubic", 90.0)]
    found = findings(scores, study.experiments)
    text = summary_markdown(found, study.study, scores, baselines)
    before = summary_markdown(findings(alone.scores, alone.experiments), alone.study, alone.scores)
    head = before.split("\n## ")[0].splitlines()
    lost = [line for line in head if line not in text.splitlines()]
    assert lost == [f"| Measured settings | {alone.scores['cell'].nunique()} |"]
    assert models_of(scores) == list(alone.models)  # not the widened networks' sizes, though their rows come first
    cells = len(MODELS) * (3 + len(SWEEP))
    assert f"| Super-resolution | {cells} settings measured, finetuned for 100 to 400 steps; sampled in 4 to 40" in text
    assert "300 patches; FID on made-up features; perceptual distance: LPIPS AlexNet |" in text
    assert f"| DreamBooth | 30 settings measured, finetuned for 100 to 200 steps; 2 subjects, {PROMPTS} prompts" in text
    for finding in found:
        assert markdown_text(finding.statement) in text
        for number in finding.numbers:
            assert markdown_text(number) in text
    assert f"Of {len(found)} findings" in text
    part = text.split("## Checks")[1].split("\n## ")[0]
    assert part.count("\n- ") == 6 and "in 4 of 4 models beyond the interval" in part and "bicubic 90" in part
    assert "one set of patches" in text and "another choice of subjects" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace(r"\|", "").count("|") in (3, 5)
