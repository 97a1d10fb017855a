"""Configs: what is refused, in which words, and what is accepted."""

import copy
import json
import math

import pytest
from helpers import REPO, SCHEMA, merged, own

from ldmscale.config.check import check
from ldmscale.config.study import Study
from ldmscale.errors import UserError
from ldmscale.figures import FIGURES


def refused(config):
    with pytest.raises(UserError) as caught:
        check(config, SCHEMA)
    return str(caught.value).splitlines()


COCO = {"source": "coco", "annotations": "a.json", "images": "i", "fit": "crop", "split_by": None, "on_error": "skip"}
TWO = [{"name": "a", "filters": 8}, {"name": "b", "filters": 16}]
DIT = {"name": "d", "family": "dit", "width": 8, "depth": 2, "heads": 2}
NAMES = {"figures": {"fig07": {"models": ["a"]}, "fig08": {"models": ["a"]}}}

# (what is wrong, what the one sentence must name)
BAD = [
    ({"sampel": 1}, ["'sampel'", "top level"]),
    ({"data": {"imagesize": 3}}, ["'imagesize'", "at data", "image_size"]),
    ({"experiments": {"grid": {"stps": [1]}}}, ["'stps'", "experiments.grid", "steps"]),
    ({"pretrain": {"learning_rate": "1e-4"}}, ["pretrain.learning_rate", "'1e-4'", "1.0e-4"]),
    ({"experiments": {"grid": {"cfg": ["4"]}}}, ["experiments.grid.cfg[0]", "'4'", "number"]),
    ({"experiments": {"grid": {"cfg": []}}}, ["experiments.grid.cfg", "empty"]),
    ({"experiments": {"grid": {"cfg": None}}}, ["experiments.grid.cfg", "None", "array"]),
    ({"experiments": {"grid": {"cfg": [-1.0]}}}, ["experiments.grid.cfg[0]", "-1.0"]),
    ({"experiments": {"grid": {"cfg": [math.inf]}}}, ["experiments.grid.cfg[0]", "inf", "number"]),
    ({"experiments": {"grid": {"cfg": [4, 4.0]}}}, ["experiments.grid.cfg", "non-unique"]),
    ({"experiments": {"grid": {"steps": [4.0]}}}, ["experiments.grid.steps[0]", "4.0", "integer"]),
    ({"experiments": {"grid": {"steps": [0]}}}, ["experiments.grid.steps[0]", "0"]),
    ({"experiments": {"grid": {"steps": [1000]}}}, ["experiments.grid.steps", "1000", "diffusion.steps"]),
    ({"experiments": {"grid": {"costs": [3]}}}, ["experiments.grid", "exactly one", "steps", "costs"]),
    ({"experiments": {"grid": {"samplers": ["euler"]}}}, ["experiments.grid.samplers[0]", "'euler'", "dpmpp2m"]),
    ({"experiments": {"grid": {"models": []}}}, ["experiments.grid.models", "empty"]),
    ({"experiments": {"grid": {"models": "every"}}}, ["experiments.grid.models", "'every'", "all"]),
    ({"experiments": {"grid": {"models": ["f9"]}}}, ["experiments.grid.models", "'f9'", "f8"]),
    ({"experiments": {"headline": {"scored": False}}}, ["experiments.headline", "scored"]),
    ({"experiments": {"gird": None}}, ["'gird'", "experiments", "grid"]),
    ({"experiments": None}, ["experiments", "object"]),
    ({"models": []}, ["models", "empty"]),
    ({"models": [{"name": "a"}]}, ["models[0]", "'filters'"]),
    ({"models": [{"name": "a/b", "filters": 8}]}, ["models[0].name", "'a/b'"]),
    ({"models": [{"name": "a", "filters": 8.0}]}, ["models[0].filters", "8.0", "integer"]),
    ({"models": [TWO[0], {"name": "a", "filters": 16}], **NAMES}, ["'a'", "2 times"]),
    ({"models": TWO[::-1], **NAMES}, ["models", "[16, 8]", "ascend"]),
    ({"models": [{"name": "a", "filters": 4}], "unet": {"norm_groups": 8}, **NAMES}, ["'a'", "4", "norm_groups 8"]),
    ({"models": [{"name": "a", "filters": 4}], "unet": {"heads": 16}, **NAMES}, ["'a'", "4", "unet.heads 16"]),
    ({"models": [TWO[0], {**TWO[1], "weights": "u", "heads": [2, 3]}], **NAMES}, ["'b'", "its heads [2, 3]"]),
    ({"models": [TWO[0], {**TWO[1], "weights": "u", "heads": [2]}], **NAMES}, ["'b'", "1 heads", "2 levels"]),
    ({"models": [TWO[0], {**TWO[1], "weights": "u", "pretrain": {"batch": 4}}], **NAMES}, ["'b'", "not trained"]),
    ({"models": [TWO[0], {"name": "d", "family": "dit", "width": 8}], **NAMES}, ["models[1]", "'depth'"]),
    ({"models": [TWO[0], {"name": "d", "family": "vit"}], **NAMES}, ["models[1].family", "'vit'", "dit"]),
    ({"models": [{**TWO[0], "depth": 3}], **NAMES}, ["'a'", "has depth", "U-Net", "filters"]),
    ({"models": [DIT, TWO[0]], **NAMES}, ["U-Net stands after a transformer"]),
    ({"models": [TWO[0], {**DIT, "weights": "w"}], **NAMES}, ["'d' has weights", "no published ones"]),
    ({"models": [TWO[0], {**DIT, "filters": 8}], **NAMES}, ["'d' has filters", "width, depth, heads"]),
    ({"models": [TWO[0], {**DIT, "heads": [2]}], **NAMES}, ["'d' has heads [2]", "one number"]),
    ({"models": [TWO[0], {**DIT, "width": 18}], **NAMES}, ["'d' has width 18", "multiple of 4 (4 and its heads, 2)"]),
    ({"models": [TWO[0], {**DIT, "heads": 3, "width": 8}], **NAMES}, ["'d' has width 8", "multiple of 12"]),
    ({"models": [TWO[0], DIT, {**DIT, "name": "e", "depth": 1}], **NAMES}, ["8 x 2, 8 x 1", "ascend"]),
    ({"models": [TWO[0], DIT, {**DIT, "name": "e"}], **NAMES}, ["8 x 2, 8 x 2", "each used once"]),
    ({"dit": {"patch": 3}}, ["dit.patch is 3", "latents' side (8)"]),
    ({"dit": {"heads": 3}}, ["'heads'", "at dit", "mlp_ratio"]),
    ({"models": [DIT], "figures": {**NAMES["figures"], "fig02": {}}}, ["figures.fig02 draws a U-Net", "null"]),
    ({"models": TWO, **NAMES}, ["figures.families compares", "one family"]),
    ({"figures": {"fig07": {"steps": 3}}}, ["figures.fig07 shows 3 steps", "experiments.grid.steps are"]),
    ({"figures": {"fig13": {"steps": [4, 7]}}}, ["figures.fig13 shows 7 steps", "experiments.grid.steps are"]),
    ({"models": [{**m, "weights": "w"} for m in TWO], **NAMES}, ["figures.fits shows training", "null"]),
    ({"figures": {"families": {"models": ["f4", "f8"]}}}, ["figures.families compares", "one family"]),
    ({"figures": {"families": {"experiment": "superres"}}}, ["figures.families.experiment", "t2i"]),
    ({"figures": {"families": {"metric": "psnr"}}}, ["figures.families.metric", "'psnr'"]),
    ({"clip": {"published": "ViT-L/14"}}, ["clip.weights is null", "ViT-L/14"]),
    ({"clip": {"published": "ViT-L/15", "weights": "w"}}, ["clip.published", "ViT-L/15"]),
    ({"text_encoder": {"weights": "w", "published": "stable-diffusion-1"}}, ["tokenizer.files", "text_encoder"]),
    (
        {"text_encoder": {"weights": "w", "published": "stable-diffusion-1"}, "tokenizer": {"files": "t"}},
        ["tokenizer.vocab_size is 300", "needs 49408"],
    ),
    ({"text_encoder": {"weights": "w", "published": {"width": 8}}}, ["text_encoder.published", "depth"]),
    ({"interpolation": None}, ["interpolation is null", "experiments.interpolation"]),
    ({"interpolation": {"alphas": [1.0, 0.5]}}, ["interpolation.alphas", "1 and 0"]),
    ({"experiments": {"interpolation": {"scored": False}}}, ["experiments.interpolation.scored"]),
    ({"figures": {"fig24": {"experiment": "headline"}}}, ["figures.fig24.experiment", "interpolation"]),
    ({"figures": {"fig01": {"experiment": "interpolation"}}}, ["figures.fig01.experiment", "t2i"]),
    ({"figures": {"fig24": {"pair": 1}}}, ["figures.fig24.pair is 1", "0 to 0"]),
    ({"superres": None}, ["superres is null", "experiments.superres has the task superres"]),
    ({"dreambooth": None}, ["dreambooth is null", "experiments.dreambooth has the task dreambooth"]),
    ({"experiments": {"superres": {"scored": False}}}, ["experiments.superres.scored", "drawn to be scored"]),
    ({"experiments": {"dreambooth": {"scored": False}}}, ["experiments.dreambooth.scored", "drawn to be scored"]),
    ({"experiments": {"superres": {"cfg": [4.0]}}}, ["experiments.superres.cfg is [4.0]", "unguided", "[1.0]"]),
    ({"experiments": {"superres_training": {"cfg": [1.0, 2.0]}}}, ["experiments.superres_training.cfg", "[1.0]"]),
    ({"experiments": {"superres": {"task": "upscaling"}}}, ["experiments.superres.task", "'upscaling'", "superres"]),
    (
        {"superres": {"finetune": {"checkpoints": [0, 5]}}},
        ["superres.finetune.checkpoints is [0, 5]", "end at steps (6)"],
    ),
    ({"dreambooth": {"finetune": {"checkpoints": [4, 0]}}}, ["dreambooth.finetune.checkpoints", "ascend"]),
    ({"superres": {"finetune": {"warmup": 6}}}, ["superres.finetune.warmup is 6", "under steps (6)"]),
    ({"dreambooth": {"finetune": {"warmup": 4}}}, ["dreambooth.finetune.warmup is 4", "under steps (4)"]),
    ({"superres": {"finetune": {"lr": 1}}}, ["'lr'", "superres.finetune", "learning_rate"]),
    ({"superres": {"finetune": {"ema": 1.0}}}, ["superres.finetune.ema", "1.0"]),
    ({"superres": {"finetune": {"learning_rate": "5e-5"}}}, ["superres.finetune.learning_rate", "1.0e-4"]),
    ({"superres": {"finetune": {"checkpoints": [0, 0, 6]}}}, ["superres.finetune.checkpoints", "non-unique"]),
    ({"superres": {"degradation": "realesrgan"}}, ["superres.degradation", "'realesrgan'", "real-esrgan"]),
    ({"superres": {"patches": 0}}, ["superres.patches", "0"]),
    ({"superres": {"on_error": "ignore"}}, ["superres.on_error", "'ignore'", "skip"]),
    ({"superres": {"evaluation_lr": "lr"}}, ["superres.evaluation_lr", "superres.evaluation is not"]),
    ({"data": {"image_size": 18}, "clip": {"patch": 9}}, ["data.image_size is 18", "multiple of 4"]),
    ({"dreambooth": {"subjects": []}}, ["dreambooth.subjects", "empty"]),
    ({"dreambooth": {"subjects": ["cat", "cat"]}}, ["dreambooth.subjects", "non-unique"]),
    ({"dreambooth": {"subjects": ["my cat"]}}, ["dreambooth.subjects[0]", "'my cat'"]),
    ({"dreambooth": {"identifier": ""}}, ["dreambooth.identifier"]),
    ({"dreambooth": {"images_per_prompt": 1}}, ["dreambooth.images_per_prompt", "1"]),
    ({"dreambooth": {"class_images": 1}}, ["dreambooth.class_images", "1"]),
    ({"dreambooth": {"fit": "stretch"}}, ["dreambooth.fit", "'stretch'", "squash"]),
    ({"dreambooth": {"prior": {"steps": 1000}}}, ["dreambooth.prior.steps is 1000", "diffusion.steps"]),
    ({"dreambooth": {"prior": {"weight": 0}}}, ["dreambooth.prior.weight", "0"]),
    ({"dreambooth": {"prior": {"sampler": "euler"}}}, ["dreambooth.prior.sampler", "'euler'", "ddim"]),
    ({"codi": {"trainable": "unet"}}, ["codi.trainable", "'unet'", "adapter"]),
    ({"codi": {"cfg": [4.0, 2.0]}}, ["codi.cfg is [4.0, 2.0]", "least and the greatest"]),
    ({"codi": {"loss": {"consistency": 0.0}}}, ["codi.loss has no term"]),
    ({"codi": {"finetune": {"checkpoints": [0, 4]}}}, ["codi.finetune.checkpoints has 0", "undistilled"]),
    ({"codi": {"finetune": {"checkpoints": [3]}}}, ["codi.finetune.checkpoints is [3]", "end at steps (4)"]),
    ({"codi": None}, ["codi is null", "experiments.codi has the task codi"]),
    ({"guided": {"students": [8, 2]}}, ["guided.students is [8, 2]", "half"]),
    ({"guided": {"students": [512]}}, ["guided.students begins at 512", "diffusion.steps"]),
    ({"figures": {"fig13": {"experiment": "headline"}}}, ["figures.fig13.experiment", "of the task codi"]),
    ({"figures": {"fig19": {"experiment": "codi"}}}, ["figures.fig19.experiment", "of the task guided"]),
    ({"figures": {"fig20": {"small": "f9"}}}, ["figures.fig20.small is 'f9'", "d8x2, f4, f8"]),
    ({"figures": {"fig20": {"cost": 3}}}, ["figures.fig20 shows cost 3"]),
    ({"metrics": {"lpips": {"alex": "alex.pth"}}}, ["metrics.lpips.alex", "'alex.pth'", "object"]),
    ({"metrics": {"lpips": {"alex": {"backbone": "b"}}}}, ["metrics.lpips.alex", "'linear'"]),
    ({"metrics": {"dino": 16}}, ["metrics.dino", "16", "string"]),
    *(
        ({"figures": {figure: {"experiment": "headline"}}}, [f"figures.{figure}.experiment", "'headline'", task])
        for task, figures in {
            "superres": ("fig04", "fig05", "fig12", "fig17", "fig18"),
            "dreambooth": ("fig06", "dreambooth"),
        }.items()
        for figure in figures
    ),
    ({"figures": {"fig04": {"experiment": "dreambooth"}}}, ["figures.fig04.experiment", "of the task superres"]),
    ({"figures": {"fig03": {"experiment": "superres_training"}}}, ["figures.fig03.experiment", "of the task t2i"]),
    ({"figures": {"fig06": {"subjects": ["hat_circle", "cat"]}}}, ["figures.fig06.subjects", "'cat'", "hat_circle"]),
    ({"figures": {"fig05": {"patches": [64]}}}, ["figures.fig05 shows patch 64", "only 64 (counted from 0)"]),
    ({"figures": {"fig18": {"patches": [-1]}}}, ["figures.fig18.patches[0]", "-1"]),
    ({"figures": {"fig12": {"split": 0}}}, ["figures.fig12.split", "0"]),
    ({"figures": {"fig12": {"split": 4}}}, ["figures.fig12.split is 4", "experiments.superres.steps ([2, 4])"]),
    ({"figures": {"fig12": {"split": 1}}}, ["figures.fig12.split is 1", "experiments.superres.steps ([2, 4])"]),
    ({"figures": {"dreambooth": {"models": ["f9"]}}}, ["figures.dreambooth.models", "'f9'"]),
    ({"autoencoder": {"scale": 0}}, ["autoencoder.scale", "0"]),
    ({"models": [{"name": "a", "filters": 8, "pretrain": {"lr": 1}}]}, ["'lr'", "models[0].pretrain", "learning_rate"]),
    (
        {"models": [{"name": "a", "filters": 8, "pretrain": {"learning_rate": "1e-4"}}]},
        ["models[0].pretrain.learning_rate", "1.0e-4"],
    ),
    ({"models": [{"name": "a", "filters": 8, "pretrain": {"warmup": 5000}}], **NAMES}, ["'a'", "warmup", "5000"]),
    (
        {"models": [{"name": "a", "filters": 8, "pretrain": {"checkpoints": [40]}}], **NAMES},
        ["'a'", "checkpoints", "shares"],
    ),
    ({"unet": {"attention_levels": [True]}}, ["unet.attention_levels", "1", "2 levels"]),
    ({"unet": {"channel_mult": None}}, ["unet.channel_mult", "array"]),
    ({"pretrain": {"steps": 40.0}}, ["pretrain.steps", "40.0", "integer"]),
    ({"pretrain": {"learning_rate": math.nan}}, ["pretrain.learning_rate", "nan"]),
    ({"pretrain": {"learning_rate": 0}}, ["pretrain.learning_rate", "0"]),
    ({"pretrain": {"checkpoints": []}}, ["pretrain.checkpoints", "empty"]),
    ({"pretrain": {"checkpoints": [30]}}, ["pretrain.checkpoints", "[30]", "(40)"]),
    ({"pretrain": {"checkpoints": [20, 10, 40]}}, ["pretrain.checkpoints", "ascend"]),
    ({"pretrain": {"ema": 1.0}}, ["pretrain.ema", "1.0"]),
    ({"pretrain": {"batch": True}}, ["pretrain.batch", "True", "integer"]),
    ({"diffusion": {"beta_start": 0.5}}, ["diffusion.beta_start", "diffusion.beta_end"]),
    ({"data": {"image_size": 15}, "clip": {"patch": 5}}, ["data.image_size", "15", "multiple of 2"]),
    ({"data": {"counts": {"train": None}}}, ["data.counts.train", "scenes"]),
    ({"data": {"counts": {"heldout": 1}}}, ["data.counts.heldout", "1"]),
    ({"data": {"train": {**COCO, "fit": "stretch"}}}, ["data.train.fit", "'stretch'", "crop"]),
    ({"data": {"evaluation": {**COCO, "annotations": 3}}}, ["data.evaluation.annotations", "3", "string"]),
    ({"data": {"evaluation": {"source": "zip"}}}, ["data.evaluation.source", "'zip'", "coco"]),
    ({"data": {"evaluation": {k: v for k, v in COCO.items() if k != "fit"}}}, ["data.evaluation", "'fit'"]),
    ({"autoencoder": {"channels": 10}}, ["autoencoder.channels", "10", "norm_groups 4"]),
    ({"autoencoder": {"weights": 3}}, ["autoencoder.weights", "3", "string"]),
    ({"clip": {"patch": 5}}, ["clip.patch", "5", "image_size"]),
    ({"clip": {"text_width": 17}}, ["clip.text_width", "clip.heads"]),
    ({"figures": {"fig09": {"experiment": "gird"}}}, ["figures.fig09.experiment", "'gird'", "grid"]),
    ({"figures": {"fig01": {"prompts": [0, 99]}}}, ["figures.fig01", "99", "gallery"]),
    ({"figures": {"fig01": {"prompt": "1"}}}, ["figures.fig01.prompt", "'1'", "integer"]),
    ({"figures": {"fig07": {"models": ["f9"]}}}, ["figures.fig07.models", "'f9'"]),
    ({"figures": {"fig10": {"rows": [{"cost": 5, "prompt": 0}]}}}, ["figures.fig10", "5", "same_cost.costs"]),
    ({"figures": {"fig99": {}}}, ["'fig99'", "figures", "fig09"]),
    ({"figures": {"fig01": 7}}, ["figures.fig01", "7", "object"]),
    ({"gallery": []}, ["gallery", "empty"]),
    ({"gallery": ["a", 1]}, ["gallery[1]", "1", "string"]),
    ({"study": "../up"}, ["study", "'../up'"]),
    ({"seed": -1}, ["seed", "-1"]),
    ({"seed": 1.0}, ["seed", "1.0", "integer"]),
    ({"dpi": "150"}, ["dpi", "'150'", "integer"]),
    ({"sampling": {"cells_per_job": "cell"}}, ["sampling.cells_per_job", "'cell'", "sampler"]),
    ({"sampling": {"spacing": {"ddim": "linspace"}}}, ["sampling.spacing.ddim", "'linspace'", "leading"]),
]


@pytest.mark.parametrize(("overlay", "named"), BAD, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_config_is_refused_in_a_sentence_that_names_the_key(overlay, named):
    lines = refused(merged("smoke.yaml", overlay))
    assert any(all(word in line for word in named) for line in lines), lines
    assert all(line.startswith("config: ") for line in lines)
    assert len(lines) == len(set(lines))


def test_a_missing_section_or_key_is_named(embedded):
    for section in embedded:
        config = copy.deepcopy(embedded)
        del config[section]
        assert refused(config) == [f"config: the top level lacks the key '{section}'"]
    for section in ("data", "tokenizer", "autoencoder", "clip", "unet", "diffusion", "pretrain", "sampling", "metrics"):
        for key in embedded[section]:
            config = copy.deepcopy(embedded)
            del config[section][key]
            assert refused(config) == [f"config: {section} lacks the key '{key}'"]


def test_every_problem_is_reported_at_once(smoke):
    smoke["seed"] = "x"
    smoke["dpi"] = 1
    smoke["pretrain"]["ema"] = 2
    assert [line.split()[1].rstrip(":") for line in refused(smoke)] == ["seed", "pretrain.ema", "dpi"]


def test_an_experiment_that_a_figure_draws_cannot_go(smoke):
    smoke["experiments"]["samplers"] = None
    (line,) = refused(smoke)
    assert "figures.fig11.experiment" in line and "'samplers'" in line
    smoke["figures"]["fig11"] = None
    check(smoke, SCHEMA)


def test_a_downstream_task_goes_with_its_experiments_and_figures(smoke):
    for task, figures in {"superres": (4, 5, 12, 17, 18), "dreambooth": (6,)}.items():
        smoke[task] = None
        for name in smoke["experiments"]:
            if name.startswith(task):
                smoke["experiments"][name] = None
        lines = refused(smoke)
        named = {f"fig{n:02}" for n in figures} | ({"dreambooth"} if task == "dreambooth" else set())
        assert named == {line.split(".")[1] for line in lines if ".experiment is" in line}
        smoke["figures"] |= dict.fromkeys(named)
        check(smoke, SCHEMA)


def test_fig_6_counts_prompts_of_its_subjects_not_of_the_gallery(smoke):
    smoke["figures"]["fig06"]["prompt"] = 20  # of 25; the gallery has two
    check(smoke, SCHEMA)


def test_patches_are_counted_where_the_config_says_how_many_there_are(smoke):
    smoke["figures"]["fig05"]["patches"] = [63]
    check(smoke, SCHEMA)
    smoke["figures"]["fig05"]["patches"] = [500]
    smoke["superres"]["evaluation"] = "photos"  # whose number is not known before they are read
    check(smoke, SCHEMA)


def test_finetuning_may_keep_the_weights_that_it_starts_from_or_not(smoke):
    for checkpoints in ([0, 6], [6], [3, 6]):
        smoke["superres"]["finetune"]["checkpoints"] = checkpoints
        check(smoke, SCHEMA)


def test_the_headline_cannot_go(smoke):
    smoke["experiments"]["headline"] = None
    assert any("experiments.headline must be there" in line for line in refused(smoke))


@pytest.mark.parametrize("overlay", sorted(p.name for p in (REPO / "configs").glob("*.yaml")))
def test_the_configs_of_the_repository_are_good(overlay):
    check(merged(overlay), SCHEMA)


@pytest.mark.parametrize("overlay", [None, *sorted(p.name for p in (REPO / "configs").glob("*.yaml"))])
def test_every_study_diffuses_as_stable_diffusion_does(overlay):
    diffusion = merged(*filter(None, [overlay]))["diffusion"]
    assert diffusion == {"steps": 1000, "kind": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}


def test_numbers_may_be_written_in_any_way_that_yaml_reads_as_a_number(smoke):
    smoke["pretrain"]["learning_rate"] = 1  # an integer is a number
    smoke["experiments"]["grid"]["cfg"] = [2, 4.5, 1.0e6]
    check(smoke, SCHEMA)


def test_the_schema_names_the_figures_that_there_are():
    schema = json.loads(SCHEMA.read_text())
    assert schema["properties"]["figures"]["propertyNames"]["enum"] == list(FIGURES)


def test_the_config_file_is_the_documentation_of_every_key(embedded):
    """Every key that the schema knows stands in config.yaml, where the sections are fixed."""
    schema = json.loads(SCHEMA.read_text())

    def follow(node):
        return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node

    def walk(node, value, path):
        node = follow(node)
        branches = [branch for branch in node.get("anyOf", []) if branch.get("type") == "object"]
        node = {**node, **branches[0]} if branches else node  # a section that may be null, or a name
        node = {**node, **follow(node["allOf"][0])} if "allOf" in node else node
        for key, below in node.get("properties", {}).items():
            name = f"{path}{key}"
            assert key in value, f"{name} is not in config.yaml"
            if isinstance(value[key], dict) and name not in ("data.train", "experiments", "figures"):
                walk(below, value[key], f"{name}.")

    walk(schema, embedded, "")


def test_a_models_own_pretraining_overrides_single_keys():
    config = merged("smoke.yaml", own("f4", learning_rate=5.0e-4))
    check(config, SCHEMA)
    models = Study(config).models
    assert models["f4"].pretrain == {**config["pretrain"], "learning_rate": 5.0e-4}
    assert models["f8"].pretrain == config["pretrain"]
