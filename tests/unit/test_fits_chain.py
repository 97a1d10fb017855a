"""Digests of validation losses and fits: what they follow from, and what leaves a model's losses alone."""

from helpers import merged, own

from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study

BASE = merged("smoke.yaml")


def chain(*overlays):
    return Chain(Plan(Study(merged("smoke.yaml", *overlays))))


def losses(*overlays):
    """Digests of the models' losses."""
    return {model: spec["digest"] for model, spec in chain(*overlays)["validation"]["models"].items()}


def test_a_models_losses_follow_from_its_weights_and_from_what_they_are_measured_on():
    plain = losses()
    assert losses(own("f4", learning_rate=2.0e-3))["f8"] == plain["f8"]
    assert losses(own("f4", learning_rate=2.0e-3))["f4"] != plain["f4"]
    for change in (
        {"validation": {"images": 9}},
        {"validation": {"levels": 3}},
        {"seed": 1},
        {"diffusion": {"beta_end": 0.02}},
        {"pretrain": {"steps": 60, "checkpoints": [20, 40, 60]}},
        {"autoencoder": {"kl_weight": 2.0e-6}},
        {"clip": {"image_depth": 2}},
        {"data": {"counts": {"heldout": 60}}},
    ):
        changed = losses(change)
        assert all(changed[model] != plain[model] for model in plain), change
    for change in (
        {"sampling": {"batch": 9}},
        {"metrics": {"replicates": 21}},
        {"experiments": {"grid": {"steps": [2]}}},
    ):
        assert losses(change) == plain, change


def test_fits_follow_from_losses_and_scores():
    plain = chain()["fits"]["digest"]
    changes = [{"validation": {"images": 9}}, {"experiments": {"grid": {"steps": [2]}}}, {"study": "other"}]
    digests = [chain(change)["fits"]["digest"] for change in changes]
    assert len({plain, *digests}) == 4
    assert chain({"dpi": 99})["fits"]["digest"] == plain


def test_fits_read_the_scored_experiments_that_there_are():
    assert set(chain()["fits"]["experiments"]) == {"training", "headline", "grid", "samplers"}
    without = chain({"experiments": {"training": None, "samplers": {"scored": False, "steps": [3]}}})["fits"]
    assert set(without["experiments"]) == {"headline", "grid"}


def test_both_figures_show_the_fits():
    of = chain()
    for figure in ("fits", "validation"):
        assert of.figure(figure)["beside"] == {"fits": of["fits"]["digest"]}
