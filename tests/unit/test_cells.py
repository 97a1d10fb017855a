"""The grid as a pure function of the config: cells, experiments, jobs."""

import re
from itertools import product

import pytest
from helpers import OF_ALL, REPO, merged
from hypothesis import given
from hypothesis import strategies as st

from ldmscale.cells.cell import LEVELS, TASKS, Cell
from ldmscale.cells.cost import norm_costs
from ldmscale.cells.plan import Plan, expand
from ldmscale.config.study import Study
from ldmscale.errors import UserError

MODELS = ("f4", "f8", "d8x2")
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
steps_trained = st.integers(0, 10**7)
weights = st.one_of(
    st.just("published"),
    *(steps_trained.map(f"{stage}-{{}}".format) for stage in ("pretrain", "superres")),
    st.builds("dreambooth_{}-{}".format, names, steps_trained),
)
cells = st.builds(
    Cell,
    task=st.sampled_from(TASKS),
    model=names,
    weights=weights,
    sampler=st.sampled_from(["ddim", "ddpm", "dpmpp2m"]),
    steps=st.integers(1, 999),
    cfg=st.floats(0, 1e9, allow_subnormal=False).map(abs),
)


def plan(*overlays):
    return Plan(Study(merged("smoke.yaml", OF_ALL, *overlays)))


# ---------------------------------------------------------------- a cell and its path


def test_a_path_reads_as_in_the_papers_words():
    cell = Cell("t2i", "145M", "pretrain-500000", "ddim", 50, 7.5)
    assert cell.path == "task=t2i/model=145M/weights=pretrain-500000/sampler=ddim/steps=50/cfg=7.5"
    assert cell.at(cfg=4.0).path.endswith("/cfg=4")
    assert cell.prefix("model") == "task=t2i/model=145M"
    assert cell.train_step == 500000


def test_weights_say_how_long_and_on_which_subject_they_were_trained():
    def read(weights):
        cell = Cell("t2i", "f8", weights, "ddim", 4, 1.0)
        return cell.train_step, cell.subject

    assert read("pretrain-40") == (40, "") and read("superres-0") == (0, "")
    assert read("dreambooth_hat_circle-60") == (60, "hat_circle")
    assert read("dreambooth_my-dog_2-60") == (60, "my-dog_2")
    assert read("published") == (0, "")


@given(names, steps_trained)
def test_a_subject_is_read_back_from_its_weights(subject, step):
    cell = Cell("dreambooth", "f8", f"dreambooth_{subject}-{step}", "ddim", 4, 4.0)
    assert (cell.subject, cell.train_step) == (subject, step)


@given(cells)
def test_a_cell_is_its_path(cell):
    assert Cell.parse(cell.path) == cell
    assert Cell.parse(cell.path).path == cell.path
    assert cell.path.count("/") == len(LEVELS) - 1


@given(cells, cells)
def test_two_cells_never_share_a_path(one, other):
    assert (one.path == other.path) == (one == other)


def test_guidance_weights_that_differ_in_the_tenth_digit_have_their_own_paths():
    cell = Cell("t2i", "f8", "pretrain-40", "ddim", 4, 1.0000000001)
    assert cell.path != cell.at(cfg=1.0).path
    assert Cell.parse(cell.path) == cell


GOOD = "task=t2i/model=f4/weights=pretrain-40/sampler=ddim/steps=4/cfg=4"


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (GOOD.replace("cfg=4", "cfg=4.0"), f"use '{GOOD}'"),
        (GOOD.replace("steps=4", "steps=04"), f"use '{GOOD}'"),
        (GOOD.replace("steps=4", "steps=four"), "steps must be a whole number"),
        (GOOD.replace("cfg=4", "cfg=high"), "cfg a number"),
        (GOOD.replace("steps=4/", ""), "is not a cell: write task="),
        (GOOD + "/seed=1", "is not a cell: write task="),
        (GOOD.replace("steps=4/cfg=4", "cfg=4/steps=4"), "is not a cell: write task="),
        ("", "is not a cell"),
    ],
)
def test_what_is_not_a_cell_is_refused(path, named):
    with pytest.raises(UserError, match="cell") as caught:
        Cell.parse(path)
    assert named in str(caught.value)


# ---------------------------------------------------------------- experiments


def test_an_experiment_is_the_product_of_its_axes_in_order():
    study = Study(merged("smoke.yaml", {"experiments": {"grid": {"steps": [2, 4, 8], "cfg": [1, 4.0]}}}))
    expected = [Cell("t2i", m, "pretrain-40", "ddim", s, g) for m, s, g in product(MODELS, [2, 4, 8], [1.0, 4.0])]
    assert expand(study, "grid") == expected
    assert all(type(cell.cfg) is float for cell in expand(study, "grid"))


def test_training_has_every_checkpoint_and_the_headline_the_last():
    study = Study(merged("smoke.yaml"))
    assert [c.weights for c in expand(study, "training")] == ["pretrain-20", "pretrain-40"] * 3
    assert [c.weights for c in expand(study, "headline")] == ["pretrain-40"] * 3


def test_an_experiment_may_name_its_models():
    study = Study(merged("smoke.yaml", {"experiments": {"grid": {"models": ["f8"]}}}))
    assert {cell.model for cell in expand(study, "grid")} == {"f8"}


def test_same_cost_cells_spend_the_cost():
    study = Study(merged({"experiments": {"same_cost": {"costs": [2, 3, 4, 6, 8], "cfg": [4.0]}}}))
    norm = norm_costs(study)
    found = expand(study, "same_cost")
    for model, cost in product(study.models, [2, 3, 4, 6, 8]):
        steps = max(1, round(cost / norm[model]))
        assert Cell("t2i", model, study.checkpoints(model)[-1], "ddim", steps, 4.0) in found
        # Rounding to whole steps misses the cost by at most half a step.
        assert abs(steps * norm[model] - cost) <= norm[model] / 2
    assert len(found) == len(set(found))


def test_nearby_costs_that_round_to_the_same_steps_are_one_cell():
    study = Study(merged("smoke.yaml", {"experiments": {"same_cost": {"models": ["f8"], "costs": [2.0, 2.01, 4]}}}))
    assert [cell.steps for cell in expand(study, "same_cost")] == [2, 4]


def test_a_cost_beyond_the_schedule_stops_at_its_last_step():
    study = Study(merged("smoke.yaml", {"experiments": {"same_cost": {"costs": [1.0e6]}}}))
    assert {cell.steps for cell in expand(study, "same_cost")} == {999}


def test_super_resolution_samples_what_it_was_finetuned_to():
    study = Study(merged("smoke.yaml", OF_ALL))
    training, last = expand(study, "superres_training"), expand(study, "superres")
    assert training == [Cell("superres", m, f"superres-{s}", "ddim", 4, 1.0) for m in MODELS for s in (0, 3, 6)]
    assert last == [Cell("superres", m, "superres-6", "ddim", s, 1.0) for m in MODELS for s in (2, 4)]


def test_dreambooth_has_one_run_a_subject():
    subjects = {"dreambooth": {"subjects": ["hat_circle", "heart_star"]}}
    whole = expand(Study(merged("smoke.yaml", OF_ALL, subjects)), "dreambooth")
    names = [f"dreambooth_{subject}-{step}" for subject in ("hat_circle", "heart_star") for step in (0, 4)]
    assert whole == [Cell("dreambooth", m, name, "ddim", 4, 4.0) for m in MODELS for name in names]
    final = {**subjects, "experiments": {"dreambooth": {"weights": "final", "models": ["f8"]}}}
    found = expand(Study(merged("smoke.yaml", final)), "dreambooth")
    assert [cell.weights for cell in found] == ["dreambooth_hat_circle-4", "dreambooth_heart_star-4"]


def test_published_members_are_finetuned_too():
    models = [{"name": "f8", "filters": 8, "weights": "unet"}]
    study = Study(merged("smoke.yaml", {"models": models}))
    assert study.weights("t2i", "f8") == [["published"]]
    assert study.weights("superres", "f8") == [["superres-0", "superres-3", "superres-6"]]
    assert study.weights("dreambooth", "f8") == [["dreambooth_hat_circle-0", "dreambooth_hat_circle-4"]]


# ---------------------------------------------------------------- the plan


def test_cells_that_experiments_share_are_planned_once():
    planned = plan()
    assert len(planned.cells) == len(set(planned.cells))
    assert set(planned.cells) == {cell for cells in planned.experiments.values() for cell in cells}
    # headline lies in training and in grid.
    assert set(planned.experiments["headline"]) <= set(planned.experiments["grid"])
    total = sum(map(len, planned.experiments.values()))
    assert len(planned.cells) < total


def test_an_experiment_set_to_null_is_gone():
    planned = plan({"experiments": {"samplers": None}})
    assert "samplers" not in planned.experiments
    assert {cell.sampler for cell in planned.cells} == {"ddim", "codi"}


@pytest.mark.parametrize("level", LEVELS[1:])
def test_jobs_cut_the_plan_without_gap_or_overlap(level):
    planned = plan({"sampling": {"cells_per_job": level}})
    covered = [cell for job in planned.generation_jobs() for cell in planned.under(job)]
    assert sorted(covered) == sorted(planned.cells)
    scored = [cell for job in planned.scoring_jobs() for cell in planned.under(job) if planned.is_scored(cell)]
    assert sorted(scored) == sorted(planned.scored)


def test_a_scoring_job_needs_the_generation_jobs_of_its_cells_and_no_other():
    planned = plan()
    jobs = planned.generation_jobs("task=t2i/model=f4")
    assert jobs and all("model=f4/" in job for job in jobs)
    others = [f"task={task}/model={model}" for task in TASKS for model in MODELS]
    assert set(planned.scoring_jobs()) == set(others)
    assert {job for other in others for job in planned.generation_jobs(other)} == set(planned.generation_jobs())
    assert planned.generation_jobs(GOOD) == [GOOD]


def test_scoring_begins_once_a_task_where_generation_begins_once_a_model():
    planned = plan({"sampling": {"cells_per_job": "model"}})
    assert set(planned.scoring_jobs()) == {f"task={task}" for task in TASKS}
    restored = planned.under("task=superres")
    assert {(cell.task, cell.model) for cell in restored} == {("superres", model) for model in MODELS}
    assert planned.generation_jobs("task=superres") == [f"task=superres/model={model}" for model in MODELS]


def test_a_cell_of_a_picture_grid_alone_is_not_scored_and_any_other_is():
    planned = plan()
    same_cost = set(planned.experiments["same_cost"]) - planned.scored
    assert same_cost and not any(map(planned.is_scored, same_cost))
    assert all(planned.is_scored(cell) for cell in planned.experiments["grid"])
    assert planned.is_scored(Cell.parse(GOOD).at(cfg=9.0))


def test_a_cell_outside_the_plan_stands_for_itself():
    planned = plan()
    cell = Cell.parse(GOOD).at(cfg=9.0, weights="pretrain-20")
    assert planned.under(cell.path) == [cell]
    assert planned.generation_jobs(cell.path) == [cell.path]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "f99"}, "model 'f99' is not in this study (f4, f8, d8x2)"),
        ({"weights": "pretrain-30"}, "weights 'pretrain-30' is not in this study (pretrain-20, pretrain-40)"),
        ({"sampler": "euler"}, "sampler 'euler' is not in this study (ddim, ddpm, dpmpp2m, codi)"),
        (
            {"task": "upscaling"},
            "task 'upscaling' is not in this study (t2i, interpolation, superres, dreambooth, codi, guided)",
        ),
        ({"task": "superres"}, "weights 'pretrain-40' is not in this study (superres-0, superres-3, superres-6)"),
        ({"weights": "superres-6"}, "weights 'superres-6' is not in this study (pretrain-20, pretrain-40)"),
        ({"task": "superres", "weights": "superres-6"}, "cfg is 4, but super-resolution is unguided: it must be 1"),
        (
            {"task": "dreambooth", "weights": "dreambooth_hat_circle-6"},
            "weights 'dreambooth_hat_circle-6' is not in this study (dreambooth_hat_circle-0, dreambooth_hat_circle-4)",
        ),
        ({"task": "dreambooth", "weights": "dreambooth_cat-4"}, "weights 'dreambooth_cat-4' is not in this study"),
        ({"steps": 0}, "steps"),
        ({"steps": 1000}, "steps"),
        ({"cfg": -1.0}, "cfg"),
        ({"cfg": float("inf")}, "cfg"),
        ({"cfg": float("nan")}, "cfg"),
    ],
)
def test_a_cell_that_the_study_cannot_make_is_refused(changes, named):
    path = Cell.parse(GOOD).at(**changes).path
    with pytest.raises(UserError) as caught:
        plan().under(path)
    assert named in str(caught.value) and path in str(caught.value)


@pytest.mark.parametrize("task", ["interpolation", "superres", "dreambooth"])
def test_a_task_without_a_section_is_not_in_the_study(task):
    experiments = {name: None for name in merged()["experiments"] if name.startswith(task)}
    planned = plan({task: None, "experiments": experiments})
    assert {cell.task for cell in planned.cells} == set(TASKS) - {task}
    cell = Cell.parse(GOOD).at(task=task, weights=f"{task}-0", cfg=1.0)
    others = ", ".join(other for other in TASKS if other != task)
    with pytest.raises(UserError, match=re.escape(f"task '{task}' is not in this study ({others})")):
        planned.under(cell.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "superres", "weights": "superres-3", "steps": 7, "cfg": 1.0},
        {"task": "superres", "weights": "superres-6", "sampler": "dpmpp2m", "cfg": 1.0},
        {"task": "dreambooth", "weights": "dreambooth_hat_circle-0", "cfg": 7.5},
    ],
)
def test_single_cells_of_the_downstream_tasks_can_be_asked_for(changes):
    planned, cell = plan(), Cell.parse(GOOD).at(**changes)
    assert cell not in planned.cells
    assert planned.under(cell.path) == [cell] and planned.is_scored(cell)


def test_the_papers_grid_has_more_than_a_thousand_variants():
    if not (REPO / "configs" / "paper.yaml").exists():
        pytest.skip("configs/paper.yaml is not there")
    planned = Plan(Study(merged("paper.yaml")))
    assert len(planned.study.models) == 11
    assert len(planned.scored) > 1000
