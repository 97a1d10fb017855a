"""Digests: a change in a part of the config changes the stages downstream of it, and no other."""

import json

import pytest
from helpers import merged, own

from ldmscale import provenance
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study
from ldmscale.errors import UserError

ONCE = ("data", "tokenizer", "autoencoder", "clip", "latents", "prompts", "reference")
EACH = ("pretrain", "cells", "score")


def chain(*overlays):
    return Chain(Plan(Study(merged("smoke.yaml", *overlays))))


def digests(of):
    """Every stage's digest, by name; a model's stages under ``stage:model``."""
    found = {stage: of[stage]["digest"] for stage in ONCE}
    for model in of.study.models:
        prefix = f"task=t2i/model={model}"
        found[f"pretrain:{model}"] = of.pretrain(model)["digest"]
        found[f"cells:{model}"] = of.generate(prefix)["digest"]
        found[f"score:{model}"] = of.score(prefix)["digest"]
    return {**found, "scores": of.scores()["digest"]}


def changed(before, after):
    assert before.keys() == after.keys()
    return {stage for stage in before if before[stage] != after[stage]}


def both(*stages):
    return {f"{stage}:{model}" for stage in stages for model in ("f4", "f8")}


SCORED = both("score") | {"scores"}
SAMPLED = both("cells") | SCORED
TRAINED = both("pretrain") | SAMPLED
ENCODED = {"latents"} | TRAINED
CLIP = {"clip", "prompts", "reference"} | ENCODED
EVERYTHING = {"data", "tokenizer", "autoencoder"} | CLIP


COCO = {"source": "coco", "annotations": "a.json", "images": "i", "fit": "crop", "split_by": None, "on_error": "skip"}

DOWNSTREAM = [
    ({"seed": 1}, EVERYTHING),
    ({"data": {"counts": {"heldout": 65}}}, EVERYTHING),
    ({"data": {"train": COCO}}, EVERYTHING),
    ({"data": {"evaluation": COCO}}, EVERYTHING),
    ({"tokenizer": {"vocab_size": 301}}, {"tokenizer"} | CLIP),
    ({"autoencoder": {"kl_weight": 2.0e-6}}, {"autoencoder"} | ENCODED),
    ({"autoencoder": {"channels": 16}}, {"autoencoder"} | ENCODED),
    ({"autoencoder": {"train": {"steps": 31}}}, {"autoencoder"} | ENCODED),
    ({"autoencoder": {"weights": "weights.safetensors"}}, {"autoencoder"} | ENCODED),
    ({"clip": {"image_depth": 2}}, CLIP),
    ({"clip": {"train": {"learning_rate": 1.0e-3}}}, CLIP),
    ({"unet": {"blocks_per_level": 2}}, TRAINED),
    ({"unet": {"attention_levels": [True, True]}}, TRAINED),
    ({"diffusion": {"beta_end": 0.02}}, TRAINED),
    ({"pretrain": {"learning_rate": 2.0e-3}}, TRAINED),
    ({"pretrain": {"text_dropout": 0.2}}, TRAINED),
    ({"pretrain": {"ema": 0.98}}, TRAINED),
    ({"pretrain": {"batch": 32}}, TRAINED),
    (own("f4", learning_rate=2.0e-3), {"pretrain:f4", "cells:f4", "score:f4", "scores"}),
    (own("f8", warmup=3), {"pretrain:f8", "cells:f8", "score:f8", "scores"}),
    (own("f4", learning_rate=1.0e-3), set()),  # what it is anyway
    ({"gallery": ["a red circle", "a blue star"]}, {"prompts"} | SAMPLED),
    ({"sampling": {"spacing": {"ddpm": "trailing"}}}, SAMPLED),
    ({"metrics": {"inception": "inception.pt"}}, {"reference"} | SCORED),
    ({"metrics": {"replicates": 60}}, SCORED),
    ({"reference_filters": 4}, both("cells") | {"scores"}),  # other same-cost cells are drawn; none of them is scored
    ({"sampling": {"batch": 32}}, set()),
    ({"sampling": {"keep_images": False}}, set()),
    ({"sampling": {"cells_per_job": "model"}}, set()),
    ({"dpi": 300}, set()),
    ({"figures": {"fig01": {"prompts": [1]}}}, set()),
    ({"study": "other"}, set()),
]


@pytest.fixture(scope="module")
def before():
    return digests(chain())


@pytest.mark.parametrize(("overlay", "expected"), DOWNSTREAM, ids=lambda value: str(value)[:60])
def test_a_change_reaches_what_follows_from_it_and_nothing_else(before, overlay, expected):
    assert changed(before, digests(chain(overlay))) == expected


# Raised by hand where the library changes what a stage writes.
VERSIONS = [
    ("data", EVERYTHING),
    ("tokenizer", {"tokenizer"} | CLIP),
    ("autoencoder", {"autoencoder"} | ENCODED),
    ("clip", CLIP),
    ("latents", ENCODED),
    ("prompts", {"prompts"} | SAMPLED),
    ("reference", {"reference"} | SCORED),
    ("pretrain", TRAINED),
    ("weights", SAMPLED),
    ("cell", SAMPLED),
    ("score", SCORED),
    ("scores", {"scores"}),
]


@pytest.mark.parametrize(("stage", "expected"), VERSIONS, ids=[stage for stage, _ in VERSIONS])
def test_a_stages_version_reaches_what_follows_from_it_and_nothing_else(before, monkeypatch, stage, expected):
    monkeypatch.setitem(provenance.VERSIONS, stage, 99)
    assert changed(before, digests(chain())) == expected


def test_every_version_is_of_a_stage_that_this_file_tests():
    assert set(provenance.VERSIONS) == {stage for stage, _ in VERSIONS} | {"figure", "text_encoder", "published"}


# ---------------------------------------------------------------- published weights

PUBLISHED = {
    "tokenizer": {"files": "sd/tokenizer", "vocab_size": 49408, "context_length": 77},
    "text_encoder": {"weights": "sd/text_encoder", "published": "stable-diffusion-2"},
    "models": [
        {"name": "f4", "filters": 4},
        {"name": "f8", "filters": 8, "weights": "sd/unet", "heads": [2, 4]},
    ],
}


def test_a_published_member_is_no_trained_one():
    of = chain(PUBLISHED)
    assert [of.study.checkpoints(m) for m in ("f4", "f8")] == [["pretrain-20", "pretrain-40"], ["published"]]
    assert of.study.unet_params("f8")["heads"] == [2, 4] and of.study.unet_params("f4")["heads"] == 2
    assert {c.weights for c in of.plan.cells if c.model == "f8"} == {"published"}
    assert all(c.train_step == 0 for c in of.plan.cells if c.model == "f8")
    for change in ({"pretrain": {"learning_rate": 2.0e-3}}, {"autoencoder": {"scale": 0.2}}):
        moved = changed(digests_by_model(of), digests_by_model(chain(PUBLISHED, change)))
        # The scale is what latents are multiplied by, for training and for decoding what was sampled.
        assert moved == ({"f4"} if "pretrain" in change else {"f4", "f8"})


def digests_by_model(of):
    return {model: of.generate(f"task=t2i/model={model}")["digest"] for model in of.study.models}


@pytest.mark.parametrize(("stage", "expected"), [("published", {"f8"}), ("text_encoder", {"f4", "f8"})])
def test_the_versions_of_the_published_stages_reach_their_cells(monkeypatch, stage, expected):
    before = digests_by_model(chain(PUBLISHED))
    monkeypatch.setitem(provenance.VERSIONS, stage, 99)
    assert changed(before, digests_by_model(chain(PUBLISHED))) == expected


def test_the_text_encoder_sets_the_width_of_the_context():
    assert chain(PUBLISHED).study.unet_params("f4")["context_width"] == 1024
    assert chain().study.unet_params("f4")["context_width"] == 16


def test_a_given_scale_spares_the_sampling_of_published_members_the_training_images():
    given = chain(PUBLISHED, {"autoencoder": {"scale": 0.18215}})
    assert "latents" not in given.generate("task=t2i/model=f8")["inputs"]
    assert "latents" in chain(PUBLISHED).generate("task=t2i/model=f8")["inputs"]
    assert "data" not in given["tokenizer"]["inputs"]


def test_a_folder_of_weights_counts_by_the_names_and_bytes_of_its_files(tmp_path):
    def read():
        return provenance.file_digest(tmp_path)

    (tmp_path / "config.json").write_text("{}")
    first = read()
    (tmp_path / "model.safetensors").write_text("one")
    second = read()
    (tmp_path / "model.safetensors").write_text("two")
    assert len({first, second, read()}) == 3
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert read() not in (first, second)


def test_a_respaced_sampler_changes_its_own_cells_alone():
    before, after = chain(), chain({"sampling": {"spacing": {"ddpm": "trailing"}}})
    moved = {c.sampler for c in before.plan.cells if before.cell(c)["digest"] != after.cell(c)["digest"]}
    assert moved == {"ddpm"}


def test_a_longer_run_keeps_the_trajectory_and_the_cells_along_it():
    before, after = chain(), chain({"pretrain": {"steps": 80, "checkpoints": [20, 40, 80]}})
    assert before.pretrain("f4")["digest"] == after.pretrain("f4")["digest"]
    assert before.pretrain("f4")["steps"] != after.pretrain("f4")["steps"]
    for cell in before.plan.experiments["training"]:
        assert before.cell(cell) == after.cell(cell)


def test_another_guidance_weight_leaves_the_cells_that_were_there():
    before, after = chain(), chain({"experiments": {"grid": {"cfg": [1.0, 4.0, 6.0]}}})
    assert set(before.plan.cells) < set(after.plan.cells)
    assert all(before.cell(cell) == after.cell(cell) for cell in before.plan.cells)
    assert before.scores()["digest"] != after.scores()["digest"]
    moved = [job for job in before.plan.generation_jobs() if before.generate(job) != after.generate(job)]
    assert moved == [f"task=t2i/model={m}/weights=pretrain-40/sampler=ddim" for m in ("f4", "f8")]


def test_every_cell_has_its_own_digest():
    of = chain()
    assert len({of.cell(cell)["digest"] for cell in of.plan.cells}) == len(of.plan.cells)


def test_a_cell_that_is_scored_is_not_the_one_that_was_drawn_for_its_picture():
    before = chain()
    cell = next(c for c in before.plan.experiments["same_cost"] if not before.plan.is_scored(c))
    assert before.cell(cell)["digest"] != chain({"experiments": {"same_cost": {"scored": True}}}).cell(cell)["digest"]


def test_a_cell_that_is_only_a_picture_has_no_score_to_ask_for():
    of = chain()
    cell = next(c for c in of.plan.cells if not of.plan.is_scored(c))
    with pytest.raises(UserError, match="is not scored") as caught:
        of.score(cell.path)
    assert cell.path in str(caught.value)


def test_a_file_that_the_config_names_counts_by_its_bytes(tmp_path):
    for name, overlay, stages in (
        ("a.json", {"data": {"train": {**COCO, "annotations": str(tmp_path / "a.json")}}}, EVERYTHING),
        ("w.st", {"autoencoder": {"weights": str(tmp_path / "w.st")}}, {"autoencoder"} | ENCODED),
        ("c.st", {"clip": {"weights": str(tmp_path / "c.st")}}, CLIP),
        ("i.pt", {"metrics": {"inception": str(tmp_path / "i.pt")}}, {"reference"} | SCORED),
    ):
        absent = digests(chain(overlay))
        (tmp_path / name).write_text("one")
        one = digests(chain(overlay))
        (tmp_path / name).write_text("two")
        assert changed(absent, one) == changed(one, digests(chain(overlay))) == stages


def test_given_weights_do_not_depend_on_the_training_images():
    before = digests(chain({"autoencoder": {"weights": "w.st"}}))
    after = digests(chain({"autoencoder": {"weights": "w.st"}, "data": {"counts": {"train": 300}}}))
    assert "autoencoder" not in changed(before, after)


# ---------------------------------------------------------------- figures


def figures(of):
    made = {name: of.figure(name) for name, settings in of.config["figures"].items() if settings is not None}
    return {**made, "table1": of.report("headline"), "summary": of.report(*of.plan.experiments)}


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ({"dpi": 90}, {name for name in figures(chain()) if name.startswith("fig")}),
        ({"figures": {"fig14": {"prompts": [1]}}}, {"fig14"}),
        ({"figures": {"fig07": {"steps": 2}}}, {"fig07"}),
        ({"pretrain": {"learning_rate": 2.0e-3}}, set(figures(chain()))),
        ({"sampling": {"batch": 32}}, set()),
    ],
    ids=str,
)
def test_a_figure_depends_on_its_settings_and_on_the_scores(overlay, expected):
    before, after = figures(chain()), figures(chain(overlay))
    assert {name for name in before if before[name] != after[name]} == expected


def test_the_params_of_every_job_are_plain_data_that_do_not_depend_on_the_run():
    of, again = chain(), chain()
    for job in of.plan.generation_jobs():
        assert json.dumps(of.generate(job)) == json.dumps(again.generate(job))
    for job in of.plan.scoring_jobs():
        assert json.dumps(of.score(job)) == json.dumps(again.score(job))
    for stage in ONCE:
        assert json.dumps(of[stage]) == json.dumps(again[stage])
    assert json.dumps(figures(of)) == json.dumps(figures(again))
