"""The grid as a pure function of the config: cells, experiments, jobs."""

from itertools import product

import pytest
from helpers import REPO, merged
from hypothesis import given
from hypothesis import strategies as st

from ldmscale.cells.cell import LEVELS, Cell
from ldmscale.cells.cost import norm_costs
from ldmscale.cells.plan import Plan, expand
from ldmscale.config.study import Study
from ldmscale.errors import UserError

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
cells = st.builds(
    Cell,
    task=st.just("t2i"),
    model=names,
    weights=st.integers(1, 10**7).map("pretrain-{}".format),
    sampler=st.sampled_from(["ddim", "ddpm", "dpmpp2m"]),
    steps=st.integers(1, 999),
    cfg=st.floats(0, 1e9, allow_subnormal=False).map(abs),
)


def plan(*overlays):
    return Plan(Study(merged("smoke.yaml", *overlays)))


# ---------------------------------------------------------------- a cell and its path


def test_a_path_reads_as_in_the_papers_words():
    cell = Cell("t2i", "145M", "pretrain-500000", "ddim", 50, 7.5)
    assert cell.path == "task=t2i/model=145M/weights=pretrain-500000/sampler=ddim/steps=50/cfg=7.5"
    assert cell.at(cfg=4.0).path.endswith("/cfg=4")
    assert cell.prefix("model") == "task=t2i/model=145M"
    assert cell.train_step == 500000


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
    expected = [Cell("t2i", m, "pretrain-40", "ddim", s, g) for m, s, g in product(["f4", "f8"], [2, 4, 8], [1.0, 4.0])]
    assert expand(study, "grid") == expected
    assert all(type(cell.cfg) is float for cell in expand(study, "grid"))


def test_training_has_every_checkpoint_and_the_headline_the_last():
    study = Study(merged("smoke.yaml"))
    assert [c.weights for c in expand(study, "training")] == ["pretrain-20", "pretrain-40"] * 2
    assert [c.weights for c in expand(study, "headline")] == ["pretrain-40"] * 2


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
    assert {cell.sampler for cell in planned.cells} == {"ddim"}


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
    others = [f"task={task}/model={model}" for task in ("t2i", "interpolation") for model in ("f4", "f8")]
    assert {job for other in others for job in planned.generation_jobs(other)} == set(planned.generation_jobs())
    assert planned.generation_jobs(GOOD) == [GOOD]


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
        ({"model": "f99"}, "model 'f99' is not in this study (f4, f8)"),
        ({"weights": "pretrain-30"}, "weights 'pretrain-30' is not in this study (pretrain-20, pretrain-40)"),
        ({"sampler": "euler"}, "sampler 'euler' is not in this study (ddim, ddpm, dpmpp2m)"),
        ({"task": "superres"}, "task 'superres' is not in this study (t2i, interpolation)"),
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


def test_the_papers_grid_has_more_than_a_thousand_variants():
    if not (REPO / "configs" / "paper.yaml").exists():
        pytest.skip("configs/paper.yaml is not there")
    planned = Plan(Study(merged("paper.yaml")))
    assert len(planned.study.models) == 11
    assert len(planned.scored) > 1000
