"""What a study is estimated to cost: against sums written out by hand, and the tables that users read."""

import json

import pytest
from helpers import REPO, merged

from ldmscale.cells.cost import flops, model_shape
from ldmscale.cells.estimate import Passes, estimate, vit_flops
from ldmscale.cells.plan import Plan
from ldmscale.cli.main import main
from ldmscale.config.study import Study

PASSES = Passes(encode=10**12, decode=2 * 10**12, caption=10**11)


@pytest.fixture(scope="module")
def paper():
    plan = Plan(Study(merged("paper.yaml")))
    return plan, {(w.stage, w.model): w for w in estimate(plan, PASSES, 600_000_000)}


def one(plan, model):
    return flops(model_shape(plan.study, plan.study.models[model]))


def test_the_papers_trainings(paper):
    plan, work = paper
    net = one(plan, "866M")
    assert net == pytest.approx(804.3e9, rel=1e-3)
    assert work["pretrain", "866M"].flops == 3 * 2048 * 500_000 * net
    assert work["superres", "866M"].flops == 3 * 192 * 130_000 * net
    assert work["dreambooth", "866M"].flops == 3 * 30 * 800 * 2 * net
    assert work["class_images", "866M"].flops == 30 * 200 * 50 * 2 * net
    assert work["guided", "83M"].flops == 5 * 512 * 5000 * 4 * one(plan, "83M")  # a stage and three halvings
    assert work["latents", ""].flops == 600_000_000 * (PASSES.encode + PASSES.caption)
    trained = {model for stage, model in work if stage == "pretrain"}
    assert trained == set(plan.study.models)
    assert not [w for w in work.values() if w.flops <= 0]


def test_the_docs_say_what_the_papers_trainings_cost(paper):
    _, work = paper
    page = (REPO / "docs" / "lab.md").read_text()
    total = sum(w.flops for (stage, _), w in work.items() if stage == "pretrain")
    for flops_ in (total, work["pretrain", "2B"].flops, work["pretrain", "5B"].flops):
        hours = flops_ / (0.4 * 459e12) / 3600
        assert f"| {flops_ / 1e15:,.0f} | {hours:,.0f} | {hours * 4.2:,.0f} |" in page


def test_codi_evaluates_teacher_student_and_target(paper):
    plan, work = paper
    from ldmscale.cells.cost import adapter_macs

    shape = model_shape(plan.study, plan.study.models["39M"])
    adapted = flops(shape) + 2 * adapter_macs(shape)
    assert work["codi", "39M"].flops == pytest.approx(256 * 100_000 * (flops(shape) + 2 * 3 * adapted + 2 * adapted))


def test_a_models_cells_are_summed_one_by_one(paper):
    plan, work = paper
    total = images = 0
    for cell in plan.cells:
        if cell.model != "5B":
            continue
        assert cell.task == "t2i"
        drawn = 14 + 35_000
        images += drawn
        total += drawn * (cell.steps * (2 if cell.cfg != 1 else 1) * one(plan, "5B") + PASSES.decode)
    assert work["generate", "5B"].flops == pytest.approx(total)
    assert f"{images:,} images" in work["generate", "5B"].what


def test_remat_costs_a_forward_pass(paper):
    plan, work = paper
    models = [{**m, **({"devices": {"remat": True}} if m["name"] == "5B" else {})} for m in plan.study.config["models"]]
    again = {(w.stage, w.model): w.flops for w in estimate(Plan(Study({**plan.study.config, "models": models})),
                                                           PASSES, None)}  # fmt: skip
    assert again["pretrain", "5B"] == pytest.approx(work["pretrain", "5B"].flops * 4 / 3)
    assert again["pretrain", "2B"] == work["pretrain", "2B"].flops
    assert ("latents", "") not in again


def test_a_vision_transformer_costs_what_is_known_of_it():
    assert vit_flops(768, 12, 197, 3072) == pytest.approx(2 * 17.4e9, rel=0.02)  # ViT-B/16 at 224: 17.4 to 17.6 GMACs


def test_the_command_prints_chip_hours_and_dollars(capsys, monkeypatch):
    from ldmscale.metrics import costs

    counted = costs.study_costs
    seen = []
    monkeypatch.setattr(costs, "study_costs", lambda params: seen.append(params) or vars(PASSES))
    arguments = ["estimate", "--config", "configs/smoke.yaml", "--chip", "v5e", "--mfu", "0.5", "--price", "2"]
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["work"]
    for row in rows:
        assert row["chip_hours"] == pytest.approx(row["flops"] / (197e12 * 0.5) / 3600)
        assert row["dollars"] == pytest.approx(2 * row["chip_hours"])
    assert {row["stage"] for row in rows} >= {"autoencoder", "latents", "pretrain", "codi", "generate", "score"}
    assert main([*arguments, "--models", "f4"]) == 0
    table = capsys.readouterr().out
    assert "dollars" in table and "f4" in table and "f8" not in table
    params = seen[0]
    assert not params["models"] and not params["finetuned"]  # counted by arithmetic: tracing 5B takes a minute
    assert set(counted(params)) >= set(vars(PASSES))


def test_what_cannot_be_estimated_is_a_sentence(capsys):
    assert main(["estimate", "--config", "configs/smoke.yaml", "--models", "f5"]) == 1
    assert capsys.readouterr().err == "error: --models has 'f5'; the study's models are f4, f8, d8x2\n"
    for arguments in (["--mfu", "40"], ["--price", "0"]):
        with pytest.raises(SystemExit):
            main(["estimate", *arguments])
