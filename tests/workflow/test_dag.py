"""Which jobs run: of a fresh study, a finished one, and one whose config was edited."""

from collections import Counter

import pytest
from helpers import merged, own

from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study
from ldmscale.provenance import read_json

CELLS = "results/smoke/cells"
FIGURES = 27  # of the smoke study
TABLES = {"fits": 1, "claims": 1, "table1": 1, "summary": 1, "pages": 1, "report": 1, "explorer": 1, "all": 1}
ALWAYS = {"figure": FIGURES} | TABLES
UNETS = ("f4", "f8")
MODELS = (*UNETS, "d8x2")  # the transformer: text-to-image by DDIM, and CoDi
GUIDED = ("f8",)
FRESH = Counter(
    {"config": 1, "data": 1, "tokenizer": 1, "autoencoder": 1, "clip": 1, "latents": 1, "prompts": 1, "reference": 1}
    | {"pairs": 1, "baselines": 1, "subjects": 1, "costs": 1, "timing": 1, "validation": 1}
    | dict.fromkeys(("pretrain", "codi"), len(MODELS))
    | dict.fromkeys(("superres", "class_images", "dreambooth"), len(UNETS))
    | {"guided": len(GUIDED), "generate": 28, "score": 13, "gather": 1}
    | ALWAYS
)
TASKS = ("t2i", "interpolation", "superres", "dreambooth", "codi", "guided")
FINAL = "task=t2i/model={}/weights=pretrain-40/sampler={}"
NOTHING = "Nothing to be done"


def working(done, *verbs):
    """The messages of a dry run that begin with one of ``verbs``."""
    return {message for message in done.messages if message.startswith(verbs)}


# ---------------------------------------------------------------- from nothing


def test_a_fresh_study_runs_every_stage(folder):
    done = folder.dry()
    assert done.jobs == FRESH
    assert working(done, "pretrain") == {f"pretrain {model}" for model in MODELS}
    expected = {f"generate {FINAL.format(m, s)}" for m in UNETS for s in ("ddim", "ddpm", "dpmpp2m")}
    expected |= {f"generate {FINAL.format('d8x2', 'ddim')}"}
    expected |= {f"generate task=t2i/model={m}/weights=pretrain-20/sampler=ddim" for m in MODELS}
    between = FINAL.replace("t2i", "interpolation")
    expected |= {f"generate {between.format(m, 'ddim')}" for m in UNETS}
    finetuned = [("superres", f"superres-{step}") for step in (0, 3, 6)]
    finetuned += [("dreambooth", f"dreambooth_hat_circle-{step}") for step in (0, 4)]
    expected |= {f"generate task={t}/model={m}/weights={w}/sampler=ddim" for m in UNETS for t, w in finetuned}
    expected |= {f"generate task=codi/model={m}/weights=codi-4/sampler=codi" for m in MODELS}
    students = [(m, s) for m in GUIDED for s in (4, 2)]
    expected |= {f"generate task=guided/model={m}/weights=guided_s{s}-3/sampler=ddim" for m, s in students}
    expected |= {f"generate {FINAL.format('f8', 'codi')}"}
    assert working(done, "generate") == expected
    assert len(expected) == FRESH["generate"] == 2 * (3 + 1 + 1 + 3 + 2 + 1) + 2 + 1 + 3
    scored = {f"score task={task}/model={m}" for task in TASKS for m in (GUIDED if task == "guided" else UNETS)}
    scored |= {f"score task={task}/model=d8x2" for task in ("t2i", "codi")}
    assert working(done, "score task") == scored


@pytest.mark.parametrize(("level", "jobs"), [("model", FRESH["score"]), ("cfg", None)])
def test_the_size_of_generation_jobs_is_the_configs_choice(folder, level, jobs):
    done = folder.dry(overlay={"sampling": {"cells_per_job": level}})
    assert done.jobs["generate"] == (jobs or len(Plan(Study(merged("smoke.yaml"))).cells))


def test_one_model_can_be_asked_for(folder):
    done = folder.dry("results/smoke/models/f4/pretrain.json")
    assert done.jobs == {"data": 1, "tokenizer": 1, "autoencoder": 1, "clip": 1, "latents": 1, "pretrain": 1}


def test_one_finetuned_model_can_be_asked_for(folder):
    encoders = {"data": 1, "tokenizer": 1, "autoencoder": 1, "clip": 1, "latents": 1, "pretrain": 1}
    done = folder.dry("results/smoke/models/f4/superres.json")
    assert done.jobs == {**encoders, "pairs": 1, "superres": 1}
    subject = {**encoders, "subjects": 1, "dreambooth": 1}
    target = "results/smoke/models/f4/dreambooth.json"
    assert folder.dry(target).jobs == {**subject, "class_images": 1}
    assert folder.dry(target, overlay={"dreambooth": {"prior": None}}).jobs == subject


def test_a_study_without_downstream_tasks_has_none_of_their_jobs(folder):
    gone = {"experiments": ("superres", "superres_training", "dreambooth"),
            "figures": ("fig04", "fig05", "fig06", "fig12", "fig17", "fig18", "dreambooth")}  # fmt: skip
    overlay = {"superres": None, "dreambooth": None, **{key: dict.fromkeys(names) for key, names in gone.items()}}
    mine = {"pairs", "baselines", "subjects", "superres", "class_images", "dreambooth"}
    expected = {rule: count for rule, count in FRESH.items() if rule not in mine}
    expected |= {"generate": 18, "score": 9, "figure": FIGURES - 7}
    assert folder.dry(overlay=overlay).jobs == expected


def test_one_distilled_model_can_be_asked_for(folder):
    made = {"data": 1, "tokenizer": 1, "autoencoder": 1, "clip": 1, "latents": 1, "pretrain": 1}
    for task in ("codi", "guided"):
        assert folder.dry(f"results/smoke/models/f4/{task}.json").jobs == {**made, task: 1}


def test_a_study_without_distilled_models_has_none_of_their_jobs(folder):
    gone = {"experiments": ("codi", "codi_timesteps", "guided"), "figures": ("fig13", "fig19", "fig20")}
    overlay = {"codi": None, "guided": None, **{key: dict.fromkeys(names) for key, names in gone.items()}}
    expected = {rule: count for rule, count in FRESH.items() if rule not in ("codi", "guided")}
    expected |= {"generate": 22, "score": 9, "figure": FIGURES - 3}
    assert folder.dry(overlay=overlay).jobs == expected


def test_the_embedded_study_is_the_default(folder):
    done = folder.dry(config=None)
    config = merged()
    assert done.jobs["pretrain"] == len(config["models"]) >= 4
    assert done.jobs["figure"] == sum(settings is not None for settings in config["figures"].values()) == 28
    assert done.jobs["superres"] == done.jobs["dreambooth"] == done.jobs["class_images"] == done.jobs["pretrain"]
    assert "results/embedded/report.html" in done.said


# ---------------------------------------------------------------- a finished study, edited


def test_a_finished_study_has_nothing_to_do(study):
    done = study.dry()
    assert NOTHING in done.said and done.jobs == {}


def test_another_guidance_weight_runs_its_own_jobs_alone(study):
    done = study.dry(overlay={"experiments": {"grid": {"cfg": [1.0, 4.0, 6.0]}}})
    assert done.jobs == Counter({"config": 1, "generate": 3, "score": 3, "timing": 1, "gather": 1} | ALWAYS)
    assert working(done, "generate") == {f"generate {FINAL.format(m, 'ddim')}" for m in MODELS}


def test_a_figures_resolution_redraws_figures_alone(study):
    done = study.dry(overlay={"dpi": 61})
    assert done.jobs == {"config": 1, "figure": FIGURES, "report": 1, "all": 1}


def test_a_figures_prompt_redraws_that_figure_alone(study):
    done = study.dry("figures", overlay={"figures": {"fig14": {"prompts": [1]}}})
    assert done.jobs == {"figure": 1, "figures": 1}
    assert working(done, "draw") == {"draw fig14"}


def test_one_models_learning_rate_runs_its_chain_alone(study):
    done = study.dry(overlay=own("f4", learning_rate=2.0e-3))
    trained = {
        "pretrain": 1,
        "validation": 1,
        "superres": 1,
        "class_images": 1,
        "dreambooth": 1,
        "codi": 1,
    }
    assert done.jobs == Counter({"config": 1, **trained, "generate": 11, "score": 5, "timing": 1, "gather": 1} | ALWAYS)
    assert working(done, "pretrain") == {"pretrain f4"}
    assert all("f4" in message for message in working(done, "finetune", "distil"))
    assert all("model=f4" in message for message in working(done, "generate", "score"))


def test_a_new_gallery_prompt_trains_nothing(study):
    done = study.dry(overlay={"gallery": [*merged("smoke.yaml")["gallery"], "a small star"]})
    # What super-resolution's scores have for classes are CLIP embeddings of prompts, of the same stage.
    again = {"prompts": 1, "baselines": 1, "validation": 1, "generate": 18, "score": 11, "timing": 1, "gather": 1}
    assert done.jobs == Counter({"config": 1, **again} | ALWAYS)
    assert not any("superres" in message or "dreambooth" in message for message in working(done, "generate"))


def test_another_finetuning_rate_runs_that_task_alone(study):
    done = study.dry(overlay={"superres": {"finetune": {"learning_rate": 1.5e-3}}})
    assert done.jobs == Counter(
        {"config": 1, "superres": 2, "generate": 6, "score": 2, "timing": 1, "gather": 1} | ALWAYS
    )
    assert all("task=superres" in message for message in working(done, "generate", "score"))
    done = study.dry(overlay={"dreambooth": {"prior": {"weight": 0.5}}})
    assert done.jobs == Counter(
        {"config": 1, "dreambooth": 2, "generate": 4, "score": 2, "timing": 1, "gather": 1} | ALWAYS
    )
    assert all("task=dreambooth" in message for message in working(done, "generate", "score"))


def test_a_longer_run_trains_on_and_draws_the_new_checkpoints_cells(study):
    done = study.dry("cells", overlay={"pretrain": {"steps": 60, "checkpoints": [20, 40, 60]}})
    assert done.jobs["pretrain"] == len(MODELS)
    assert any("weights=pretrain-60" in message for message in working(done, "generate"))


def test_a_new_seed_runs_everything(study):
    # What networks cost is in their shapes.
    assert study.dry(overlay={"seed": 1}).jobs == FRESH - Counter(costs=1)


def test_keys_in_another_order_run_nothing(study):
    spec = merged("smoke.yaml")["pretrain"]
    overlay = {"pretrain": dict(reversed(spec.items())), "metrics": {"replicates": 50}}
    assert NOTHING in study.dry("models", "cells", "figures", overlay=overlay).said


# ---------------------------------------------------------------- one cell


def test_a_planned_cell_is_a_target(folder, study):
    cell = f"{FINAL.format('f4', 'ddim')}/steps=4/cfg=4"
    done = folder.dry(f"{CELLS}/{cell}/scores.json")
    assert done.jobs["pretrain"] == done.jobs["generate"] == done.jobs["score"] == 1
    assert working(done, "pretrain", "generate", "score") == {"pretrain f4", f"generate {cell}", f"score {cell}"}
    # Its sampler's job has drawn it already, under another name: what is left is to say so.
    done = study.dry(f"{CELLS}/{cell}/scores.json")
    assert done.jobs == {"generate": 1, "score": 1}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (f"{FINAL.format('f99', 'ddim')}/steps=4/cfg=4/scores.json", "model 'f99' is not in this study (f4, f8, d8x2)"),
        (f"{FINAL.format('f4', 'ddim')}/steps=4/cfg=4.0/generated.json", "is not how that cell is written"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_in_a_sentence(folder, target, said):
    assert said in folder.refused("-n", f"{CELLS}/{target}")


# ---------------------------------------------------------------- run for real


def test_adding_a_guidance_weight_computes_only_the_new_cells(copy):
    manifests = ("cells/**/sample.json", "cells/**/score.json", "cells/**/*.npy", "models/**/*.safetensors")
    before = [copy.mtimes(pattern) for pattern in manifests]
    overlay = {"experiments": {"grid": {"cfg": [1.0, 4.0, 6.0]}}}
    copy.run("results/smoke/scores.parquet", overlay=overlay)
    after = [copy.mtimes(pattern) for pattern in manifests]
    for old, new in zip(before, after, strict=True):
        assert old and {name: new[name] for name in old} == old
    new = {name for name in after[0] if name not in before[0]}
    assert new == {f"{CELLS}/{FINAL.format(m, 'ddim')}/steps={s}/cfg=6/sample.json" for m in MODELS for s in (2, 4)}


def test_a_cell_outside_the_plan_is_made_and_scored_and_changes_nothing_else(copy):
    cell = "task=t2i/model=f4/weights=pretrain-20/sampler=ddpm/steps=3/cfg=2.5"
    copy.run(f"{CELLS}/{cell}/scores.json")
    scores = read_json(copy / CELLS / cell / "scores.json")
    assert [(row["cell"], row["split"]) for row in scores["rows"]] == [(cell, "tuning"), (cell, "heldout")]
    assert (copy / CELLS / cell / "heldout.npy").exists()
    assert NOTHING in copy.dry().said
