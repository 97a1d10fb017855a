"""Digests: a change in a part of the config changes the stages downstream of it, and no other."""

import json

import pytest
from helpers import OF_ALL, merged, own

from ldmscale import provenance
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study
from ldmscale.errors import UserError

ONCE = ("data", "tokenizer", "autoencoder", "clip", "latents", "prompts", "reference", "pairs", "baselines", "subjects",
        "costs", "timing")  # fmt: skip
TASKS = ("t2i", "superres", "dreambooth", "codi", "guided")


def named(value):
    """A test's name, the same in every process."""
    return str(sorted(value) if isinstance(value, set) else value)[:60]


def chain(*overlays):
    return Chain(Plan(Study(merged("smoke.yaml", OF_ALL, *overlays))))


def digests(of):
    """Every stage's digest, by name; a model's stages under ``stage:model``."""
    found = {stage: of[stage]["digest"] for stage in ONCE}
    for model in of.study.models:
        for stage in ("pretrain", "superres", "class_images", "dreambooth", "codi", "guided"):
            found[f"{stage}:{model}"] = getattr(of, stage)(model)["digest"]
        for task in TASKS:
            prefix = f"task={task}/model={model}"
            found[f"{task} cells:{model}"] = of.generate(prefix)["digest"]
            found[f"{task} score:{model}"] = of.score(prefix)["digest"]
    return {**found, "scores": of.scores()["digest"]}


def changed(before, after):
    assert before.keys() == after.keys()
    return {stage for stage in before if before[stage] != after[stage]}


def both(*stages):
    return {f"{stage}:{model}" for stage in stages for model in ("f4", "f8", "d8x2")}


def scored(*tasks):
    return both(*(f"{task} score" for task in tasks)) | {"scores"}


def sampled(*tasks):
    return both(*(f"{task} cells" for task in tasks)) | scored(*tasks)


def of_model(model):
    """What a model's own training changes."""
    return {stage for stage in TRAINED if stage.endswith(model)} | {"scores"}


T2I = sampled("t2i")
RESTORED = both("superres") | sampled("superres")
PERSONAL = both("dreambooth") | sampled("dreambooth")
PRESERVED = both("class_images") | PERSONAL
PAIRS = {"pairs", "baselines"} | RESTORED
SUBJECTS = {"subjects"} | PRESERVED
CONSISTENT = both("codi") | sampled("codi")
HALVED = both("guided") | sampled("guided")
TRAINED = both("pretrain") | T2I | RESTORED | PRESERVED | CONSISTENT | HALVED
# The prompts' CLIP embeddings are what super-resolution's inception score has for classes.
PROMPTS = {"prompts", "baselines"} | sampled("t2i", "codi", "guided") | scored("superres")
ENCODED = {"latents"} | TRAINED | PAIRS | SUBJECTS
CLIP = {"clip", "prompts", "reference"} | ENCODED
EVERYTHING = {"data", "tokenizer", "autoencoder"} | CLIP
LPIPS = {"backbone": "alexnet.pth", "linear": "alex.pth"}


# The unit of cost is a U-Net's: at a cost a transformer takes other steps.
UNETS = {"costs", "timing", "t2i cells:d8x2"} | of_model("f4") | of_model("f8")
COCO = {"source": "coco", "annotations": "a.json", "images": "i", "fit": "crop", "split_by": None, "on_error": "skip"}

DOWNSTREAM = [
    ({"seed": 1}, EVERYTHING),
    ({"data": {"counts": {"heldout": 65}}}, EVERYTHING),
    ({"data": {"train": COCO}}, EVERYTHING),
    ({"data": {"evaluation": COCO}}, EVERYTHING),
    ({"tokenizer": {"vocab_size": 301}}, {"tokenizer", "costs", "timing"} | CLIP),
    ({"autoencoder": {"kl_weight": 2.0e-6}}, {"autoencoder"} | ENCODED),
    ({"autoencoder": {"channels": 16}}, {"autoencoder", "costs", "timing"} | ENCODED),
    ({"autoencoder": {"train": {"steps": 31}}}, {"autoencoder"} | ENCODED),
    ({"autoencoder": {"photos": "photos"}}, {"autoencoder"} | ENCODED),
    ({"autoencoder": {"weights": "weights.safetensors"}}, {"autoencoder"} | ENCODED),
    ({"clip": {"image_depth": 2}}, CLIP),
    ({"clip": {"train": {"learning_rate": 1.0e-3}}}, CLIP),
    ({"unet": {"blocks_per_level": 2}}, UNETS),
    ({"unet": {"attention_levels": [True, True]}}, UNETS),
    ({"unet": {"dtype": "bfloat16"}}, {"costs", "timing"} | TRAINED),
    ({"dit": {"mlp_ratio": 3}}, {"costs", "timing"} | of_model("d8x2")),
    ({"diffusion": {"beta_end": 0.02}}, {"timing"} | TRAINED),
    ({"superres": {"degradation": "real-esrgan"}}, PAIRS),
    ({"superres": {"items": 65}}, PAIRS),
    ({"superres": {"train": "photos"}}, PAIRS),
    ({"superres": {"evaluation": "photos", "patches": 4}}, PAIRS),
    ({"superres": {"finetune": {"learning_rate": 1.5e-3}}}, RESTORED),
    ({"superres": {"finetune": {"batch": 16}}}, RESTORED),
    ({"dreambooth": {"identifier": "zwx"}}, SUBJECTS),
    ({"dreambooth": {"folder": "photos"}}, SUBJECTS),
    ({"dreambooth": {"prior": {"images": 9}}}, PRESERVED),
    ({"dreambooth": {"prior": {"steps": 5}}}, PRESERVED),
    ({"dreambooth": {"prior": {"cfg": 3.0}}}, PRESERVED),
    ({"dreambooth": {"prior": {"weight": 0.5}}}, PERSONAL),
    ({"dreambooth": {"finetune": {"learning_rate": 1.5e-4}}}, PERSONAL),
    ({"dreambooth": {"finetune": {"ema": 0.9}}}, PERSONAL),
    ({"dreambooth": {"images_per_prompt": 3}}, sampled("dreambooth")),
    ({"dreambooth": {"class_images": 5}}, sampled("dreambooth")),
    ({"codi": {"trainable": "full"}}, CONSISTENT),
    ({"codi": {"cfg": [1.0, 9.0]}}, CONSISTENT),
    ({"codi": {"loss": {"signal": 1.0}}}, CONSISTENT),
    ({"codi": {"finetune": {"ema": 0.9}}}, CONSISTENT),
    ({"guided": {"cfg": [1.0, 9.0]}}, HALVED),
    ({"guided": {"finetune": {"steps": 5}}}, HALVED),  # the students begin where it ends
    ({"guided": {"halving": {"learning_rate": 2.0e-3}}}, HALVED),
    ({"pretrain": {"learning_rate": 2.0e-3}}, TRAINED),
    ({"pretrain": {"text_dropout": 0.2}}, TRAINED),
    ({"pretrain": {"ema": 0.98}}, TRAINED),
    ({"pretrain": {"batch": 32}}, TRAINED),
    (own("f4", learning_rate=2.0e-3), of_model("f4")),
    (own("f8", warmup=3), of_model("f8")),
    (own("f4", learning_rate=1.0e-3), set()),  # what it is anyway
    ({"gallery": ["a red circle", "a blue star"]}, PROMPTS),
    ({"sampling": {"spacing": {"ddpm": "trailing"}}}, T2I),
    ({"sampling": {"spacing": {"ddim": "trailing"}}}, T2I | sampled("superres") | PRESERVED),
    ({"metrics": {"inception": "inception.pt"}}, {"reference", "baselines"} | scored(*TASKS)),
    ({"metrics": {"replicates": 60}}, {"baselines"} | scored(*TASKS)),
    ({"metrics": {"lpips": {"alex": LPIPS}}}, {"baselines"} | scored("superres", "dreambooth")),
    ({"metrics": {"dino": "dino.pth"}}, {"baselines"} | scored("superres", "dreambooth")),
    ({"metrics": {"dinov2": "dinov2.pth"}}, {"reference"} | scored("t2i", "codi", "guided")),
    # Other same-cost cells are drawn; none of them is scored.
    ({"reference_filters": 4}, both("t2i cells") | {"costs", "scores"}),
    ({"sampling": {"batch": 32}}, {"timing", "scores"}),  # seconds an image, in such batches
    ({"sampling": {"keep_images": False}}, set()),
    ({"sampling": {"cells_per_job": "model"}}, set()),
    ({"dpi": 300}, set()),
    ({"figures": {"fig01": {"prompts": [1]}}}, set()),
    ({"study": "other"}, set()),
]


@pytest.fixture(scope="module")
def before():
    return digests(chain())


@pytest.mark.parametrize(("overlay", "expected"), DOWNSTREAM, ids=named)
def test_a_change_reaches_what_follows_from_it_and_nothing_else(before, overlay, expected):
    assert changed(before, digests(chain(overlay))) == expected


# Raised by hand where the library changes what a stage writes.
VERSIONS = [
    ("data", EVERYTHING),
    ("tokenizer", {"tokenizer"} | CLIP),
    ("autoencoder", {"autoencoder"} | ENCODED),
    ("clip", CLIP),
    ("latents", ENCODED),
    ("prompts", PROMPTS),
    ("reference", {"reference"} | scored("t2i", "codi", "guided")),
    ("pretrain", TRAINED),
    ("pairs", PAIRS),
    ("baselines", {"baselines"} | scored("superres")),
    ("superres", RESTORED),
    ("subjects", SUBJECTS),
    ("class_images", PRESERVED),
    ("dreambooth", PERSONAL),
    ("codi", CONSISTENT),
    ("guided", HALVED),
    ("costs", {"costs", "scores"}),
    ("timing", {"timing", "scores"}),
    ("weights", sampled(*TASKS)),
    ("cell", sampled(*TASKS)),
    ("score", scored(*TASKS)),
    ("scores", {"scores"}),
]


# Of what only people read, or tested with published weights below, or in files of their own.
READ_ALONE = {"figure", "text_encoder", "published", "validation", "fits", "claims"}


@pytest.mark.parametrize(("stage", "expected"), VERSIONS, ids=[stage for stage, _ in VERSIONS])
def test_a_stages_version_reaches_what_follows_from_it_and_nothing_else(before, monkeypatch, stage, expected):
    monkeypatch.setitem(provenance.VERSIONS, stage, 99)
    assert changed(before, digests(chain())) == expected


def test_every_version_is_of_a_stage_that_this_file_tests():
    assert set(provenance.VERSIONS) == {stage for stage, _ in VERSIONS} | READ_ALONE


# ---------------------------------------------------------------- training again


def test_another_training_is_a_chain_of_its_own_beside_the_first():
    once, twice = chain(), chain({"training_seeds": 2})
    members = ["f4", "f8", "d8x2"]
    assert list(twice.study.models) == [*members, *(f"{m}.s1" for m in members)]
    stages = ("pretrain", "superres", "class_images", "dreambooth", "codi", "guided")
    for stage in stages:
        of = {m: getattr(twice, stage)(m) for m in twice.study.models}
        assert of["f4"] == getattr(once, stage)("f4")  # the first is what it was
        assert len({params["digest"] for params in of.values()}) == 6
        assert of["f4.s1"]["seed"] == 1 and of["f4"]["seed"] == 0
    # The same prompts and starting noises for all.
    assert twice.generate("task=t2i/model=f4.s1")["seed"] == once.generate("task=t2i/model=f4")["seed"]
    assert twice["costs"] == once["costs"] and twice["timing"] == once["timing"]
    of = {m: [m, 0] for m in members} | {f"{m}.s1": [m, 1] for m in members}
    assert twice.scores()["family"]["trainings"] == of


def test_figures_show_the_first_training_and_read_the_table_of_all():
    once, twice = chain(), chain({"training_seeds": 2})
    assert twice.figure("fig01")["drawn"] == once.figure("fig01")["drawn"]
    assert twice.figure("fig09")["experiments"] == once.figure("fig09")["experiments"]
    assert twice.figure("fig09")["scores"] != once.figure("fig09")["scores"]


def test_pictures_alone_are_drawn_by_the_first_training():
    plan = Plan(Study(merged("smoke.yaml", {"training_seeds": 2})))
    members = {"f4", "f8", "d8x2"}
    assert {cell.model for cell in plan.experiments["same_cost"]} == members
    assert {cell.model for cell in plan.experiments["grid"]} == members | {f"{m}.s1" for m in members}


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
    assert of.study.net_params("f8")["heads"] == [2, 4] and of.study.net_params("f4")["heads"] == 2
    pictures = [c for c in of.plan.cells if c.model == "f8" and c.task == "t2i"]
    assert {c.weights for c in pictures} == {"published"}
    assert all(c.train_step == 0 for c in pictures)
    for change in ({"pretrain": {"learning_rate": 2.0e-3}}, {"autoencoder": {"scale": 0.2}}):
        moved = changed(digests_by_model(of), digests_by_model(chain(PUBLISHED, change)))
        # The scale is what latents are multiplied by, for training and for decoding what was sampled.
        assert moved == ({"f4"} if "pretrain" in change else {"f4", "f8"})


def digests_by_model(of):
    return {model: of.generate(f"task=t2i/model={model}")["digest"] for model in of.study.models}


def test_a_published_member_is_finetuned_as_a_trained_one_is():
    of, other = chain(PUBLISHED), chain(PUBLISHED, {"models": [{**PUBLISHED["models"][1], "weights": "other/unet"}]})
    for stage in ("superres", "class_images", "dreambooth"):
        params = getattr(of, stage)("f8")
        assert params["base"] == "published" and params["net"]["heads"] == [2, 4]
        assert params["inputs"]["model"] == of.published("f8")["digest"]
        assert params["digest"] != getattr(other, stage)("f8")["digest"]
    assert of.superres("f8")["widened"] == {**of.study.net_params("f8"), "in_channels": 8}


@pytest.mark.parametrize(("stage", "expected"), [("published", {"f8"}), ("text_encoder", {"f4", "f8"})])
def test_the_versions_of_the_published_stages_reach_their_cells(monkeypatch, stage, expected):
    before = digests_by_model(chain(PUBLISHED))
    monkeypatch.setitem(provenance.VERSIONS, stage, 99)
    assert changed(before, digests_by_model(chain(PUBLISHED))) == expected


def test_the_text_encoder_sets_the_width_of_the_context():
    assert chain(PUBLISHED).study.net_params("f4")["context_width"] == 1024
    assert chain().study.net_params("f4")["context_width"] == 16


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


def test_finetuning_starts_from_the_last_weights_and_from_others_where_training_goes_on():
    before, after = chain(), chain({"pretrain": {"steps": 80, "checkpoints": [20, 40, 80]}})
    for stage in ("superres", "class_images", "dreambooth"):
        assert (getattr(before, stage)("f4")["base"], getattr(after, stage)("f4")["base"]) == (
            "pretrain-40", "pretrain-80")  # fmt: skip
        assert getattr(before, stage)("f4")["digest"] != getattr(after, stage)("f4")["digest"]


@pytest.mark.parametrize(("task", "last"), [("superres", 6), ("dreambooth", 4)])
def test_longer_finetuning_keeps_the_trajectory_and_the_cells_along_it(task, last):
    finetune = chain().config[task]["finetune"]
    checkpoints = [0, 2, *finetune["checkpoints"][1:], last + 3]
    before, after = chain(), chain({task: {"finetune": {"steps": last + 3, "checkpoints": checkpoints}}})
    short, long = (getattr(of, task)("f4") for of in (before, after))
    assert short["digest"] == long["digest"]
    assert (short["steps"], long["steps"]) == (last, last + 3) and long["checkpoints"] == checkpoints
    mine = [cell for cell in before.plan.cells if cell.task == task]
    assert mine and all(before.cell(cell) == after.cell(cell) for cell in mine)
    assert {cell.train_step for cell in after.plan.cells if cell.task == task} == set(checkpoints)


def test_another_subject_leaves_its_neighbours_images_but_not_their_weights():
    """One stage encodes all subjects, so that a new one reads, and so trains, all of them again."""
    after = chain({"dreambooth": {"subjects": ["hat_circle", "heart_star"]}})
    assert changed(digests(chain()), digests(after)) == SUBJECTS
    cells = [cell for cell in after.plan.cells if cell.task == "dreambooth" and cell.model == "f4"]
    assert {cell.subject for cell in cells} == {"hat_circle", "heart_star"}
    assert len({after.cell(cell)["digest"] for cell in cells}) == len(cells) == 4  # two subjects, two checkpoints


def test_without_a_prior_no_class_images_are_made_nor_trained_on():
    of = chain({"dreambooth": {"prior": None}})
    assert "class_images" in chain().dreambooth("f4")["inputs"]
    assert "class_images" not in of.dreambooth("f4")["inputs"] and of.dreambooth("f4")["prior_weight"] == 0
    assert chain().scores()["family"]["finetune"]["dreambooth"] == 2 * 2  # as many of the class
    assert of.scores()["family"]["finetune"] == {"superres": 8, "dreambooth": 2, "codi": 4, "guided": 4}


def test_super_resolution_alone_has_a_wider_input():
    of = chain()
    seen = {task: of.generate(f"task={task}/model=f4")["net"]["in_channels"] for task in TASKS}
    assert seen == {"t2i": 4, "superres": 8, "dreambooth": 4, "codi": 4, "guided": 4}
    assert of.superres("f4")["widened"]["in_channels"] == 8 and of.superres("f4")["net"]["in_channels"] == 4


def test_cells_draw_what_their_task_says():
    of = chain()
    draws = {cell.task: of.cell(cell)["draws"] for cell in of.plan.cells}
    assert draws["superres"] == {} and draws["interpolation"] == {"noises": 4}
    assert draws["dreambooth"] == {"images_per_prompt": 2, "class_images": 4}


def test_another_guidance_weight_leaves_the_cells_that_were_there():
    before, after = chain(), chain({"experiments": {"grid": {"cfg": [1.0, 4.0, 6.0]}}})
    assert set(before.plan.cells) < set(after.plan.cells)
    assert all(before.cell(cell) == after.cell(cell) for cell in before.plan.cells)
    assert before.scores()["digest"] != after.scores()["digest"]
    moved = [job for job in before.plan.generation_jobs() if before.generate(job) != after.generate(job)]
    assert moved == [f"task=t2i/model={m}/weights=pretrain-40/sampler=ddim" for m in ("f4", "f8", "d8x2")]


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
    lpips = {"backbone": str(tmp_path / "b.pth"), "linear": "linear.pth"}
    downstream = {"baselines"} | scored("superres", "dreambooth")
    for name, overlay, stages in (
        ("a.json", {"data": {"train": {**COCO, "annotations": str(tmp_path / "a.json")}}}, EVERYTHING),
        ("w.st", {"autoencoder": {"weights": str(tmp_path / "w.st")}}, {"autoencoder"} | ENCODED),
        ("c.st", {"clip": {"weights": str(tmp_path / "c.st")}}, CLIP),
        ("i.pt", {"metrics": {"inception": str(tmp_path / "i.pt")}}, {"reference", "baselines"} | scored(*TASKS)),
        ("v.pth", {"metrics": {"dinov2": str(tmp_path / "v.pth")}}, {"reference"} | scored("t2i", "codi", "guided")),
        ("d.pth", {"metrics": {"dino": str(tmp_path / "d.pth")}}, downstream),
        ("b.pth", {"metrics": {"lpips": {"vgg": lpips}}}, downstream),
    ):
        absent = digests(chain(overlay))
        (tmp_path / name).write_text("one")
        one = digests(chain(overlay))
        (tmp_path / name).write_text("two")
        assert changed(absent, one) == changed(one, digests(chain(overlay))) == stages


def test_a_folder_of_photos_counts_by_the_names_and_sizes_of_its_files(tmp_path):
    overlay = {"superres": {"evaluation": str(tmp_path)}}
    empty = digests(chain(overlay))
    (tmp_path / "a.png").write_bytes(b"one")
    one = digests(chain(overlay))
    (tmp_path / "a.png").write_bytes(b"three")
    assert changed(empty, one) == changed(one, digests(chain(overlay))) == PAIRS
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    assert changed(one, digests(chain(overlay))) == PAIRS


@pytest.mark.parametrize("dataset", [".", "dataset"])
def test_subjects_count_by_the_bytes_of_their_photos_and_of_the_prompt_file(tmp_path, dataset):
    """Of the dataset itself, or of the repository that holds it."""
    overlay = {"dreambooth": {"folder": str(tmp_path)}}
    (tmp_path / dataset / "hat_circle").mkdir(parents=True)
    for file in ("hat_circle/a.png", "prompts_and_classes.txt"):
        before = digests(chain(overlay))
        (tmp_path / dataset / file).write_bytes(b"one")
        one = digests(chain(overlay))
        (tmp_path / dataset / file).write_bytes(b"two")
        assert changed(before, one) == changed(one, digests(chain(overlay))) == SUBJECTS
    before = digests(chain(overlay))
    (tmp_path / dataset / "another").mkdir()
    (tmp_path / dataset / "another" / "b.png").write_bytes(b"other")
    assert digests(chain(overlay)) == before


def test_photos_of_their_own_free_super_resolution_of_the_studys_images():
    of = chain({"superres": {"train": "a", "evaluation": "b"}, "autoencoder": {"scale": 0.2}})
    assert "data" not in of["pairs"]["inputs"] and "latents" not in of["pairs"]["inputs"]
    assert "data" in chain({"superres": {"train": "a"}})["pairs"]["inputs"]
    assert "data" in chain({"superres": {"evaluation": "b"}})["pairs"]["inputs"]
    assert "latents" in chain()["pairs"]["inputs"]


def test_given_weights_do_not_depend_on_the_training_images():
    before = digests(chain({"autoencoder": {"weights": "w.st"}}))
    after = digests(chain({"autoencoder": {"weights": "w.st"}, "data": {"counts": {"train": 300}}}))
    assert "autoencoder" not in changed(before, after)


# ---------------------------------------------------------------- figures


def figures(of):
    made = {name: of.figure(name) for name, settings in of.config["figures"].items() if settings is not None}
    return {**made, "table1": of.report("headline"), "summary": of.summary()}


def beside(of, figure):
    return set(of.figure(figure)["beside"])


def test_figures_of_downstream_tasks_know_what_they_show_beside_cells():
    of = chain()
    for figure in ("fig04", "fig05", "fig12", "fig17", "fig18"):
        assert beside(of, figure) == {"pairs", "baselines"}
    assert beside(of, "fig06") == beside(of, "dreambooth") == {"subjects"}
    assert beside(of, "fig01") == beside(of, "fig24") == set()
    assert of.summary()["baselines"] == of["baselines"]["digest"]


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ({"dpi": 90}, set(figures(chain())) - {"table1", "summary"}),
        ({"figures": {"fig05": {"patches": [1]}}}, {"fig05"}),
        ({"figures": {"dreambooth": {"models": ["f8"]}}}, {"dreambooth"}),
        ({"figures": {"fig14": {"prompts": [1]}}}, {"fig14"}),
        ({"figures": {"fig07": {"steps": 2}}}, {"fig07"}),
        ({"pretrain": {"learning_rate": 2.0e-3}}, set(figures(chain()))),
        ({"sampling": {"batch": 32}}, set(figures(chain()))),
        ({"sampling": {"keep_images": False}}, set()),
    ],
    ids=named,
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
