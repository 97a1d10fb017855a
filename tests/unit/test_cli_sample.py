"""``ldmscale sample`` and ``ldmscale export``: what they draw, write and refuse; published folders."""

import json
import re
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import small_study
from PIL import Image

from ldmscale.cells.cell import Cell
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.cli import sample as command
from ldmscale.cli.main import main
from ldmscale.config.read import read_study
from ldmscale.diffusion.samplers import SAMPLERS
from ldmscale.errors import UserError
from ldmscale.generation import export, pipeline
from ldmscale.generation.cells import Generator, generate
from ldmscale.generation.draws import Draws
from ldmscale.generation.encode import Encoders
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.autoencoder_weights import autoencoder_config
from ldmscale.models.clip import TEXT_ENCODERS
from ldmscale.models.clip_weights import text_tower
from ldmscale.models.unet import UNetConfig
from ldmscale.models.unet_weights import unet_config
from ldmscale.provenance import write_checked, write_json

CONFIG = ["--config", *small_study.FILES]
EXPORT = ["export", "--model", "f8", *(x for name in small_study.FILES for x in ("--config", name))]
PROMPTS = ["a large red circle", "", "дом 家 🔴", "caf\udce9"]  # the last is an argument that is not UTF-8
SETTINGS = ["--steps", "3", "--cfg", "4"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study's folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("study")
    small_study.make(folder)
    return folder


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """What the command asks of its threads, kept from this process, which others share: (count, devices) each."""
    asked = []
    monkeypatch.setattr(command, "use_threads", lambda count, devices: asked.append((count, devices)))
    return asked


@pytest.fixture
def here(study, monkeypatch):
    monkeypatch.chdir(study)


@pytest.fixture
def copy(study, tmp_path, monkeypatch):
    """The same, to change."""
    shutil.copytree(study, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy" / "results" / "small"


@pytest.fixture(scope="module")
def exported(study, tmp_path_factory):
    """The study's model as a folder of diffusers. Not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "new" / "f8"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study)
        assert main([*EXPORT, str(folder)]) == 0
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """The same, to change."""
    return shutil.copytree(exported, tmp_path / "f8")


def edit(path, **changes):
    before = json.loads(path.read_text())
    content = {key: value for key, value in {**before, **changes}.items() if value != "gone"}
    (write_checked if content.pop("crc32", None) else write_json)(path, content)


def asked(prompts):
    return [x for prompt in prompts for x in ("--prompt", prompt)]


def sample(out, *arguments, prompts=PROMPTS):
    return main(["sample", "--model", "f8", *CONFIG, *asked(prompts), *SETTINGS, *arguments, "--out", str(out)])


def images(folder):
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))])


def test_as_many_devices_as_divide_a_batch_draw_it(here, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(command.os, "sched_getaffinity", lambda process: set(range(6)))
    for count, most, devices in ((1, 8, 1), (4, 8, 2), (9, 4, 3)):
        argument = ["sample", "--model", "none", "--prompt", "x", "--count", str(count), "--batch", str(most)]
        assert main([*argument, *CONFIG, "--out", str(tmp_path)]) == 1
        assert threads.pop() == (6, devices)


def refused(capsys, *arguments):
    """The one sentence that the command ends with, without a line of progress before it."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", said), said
    return said


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize(
    ("weights", "sampler", "steps", "cfg", "spacing", "seed", "given"),
    [
        ("pretrain-40", "ddim", 3, 4.0, "leading", 0, False),  # what the study says, where nothing is given
        ("pretrain-20", "dpmpp2m", 4, 1.0, "trailing", 7, True),
    ],
)
def test_it_draws_what_a_cell_draws(here, tmp_path, capsys, weights, sampler, steps, cfg, spacing, seed, given):
    """A generation job's images of the same weights, texts and settings; each file says what they are."""
    options = ["--weights", weights, "--sampler", sampler, "--spacing", spacing, "--seed", seed] if given else []
    options = [str(option) for option in ["--steps", steps, "--cfg", cfg, *options]]
    assert sample(tmp_path / "ours", *options) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'ours'}: 0000.png to 0003.png\n" and "batch 1 of 1" in err

    made = pipeline.of_study(read_study(small_study.FILES), "f8", weights)
    encoders = Encoders(made.autoencoder, text=made.text, batch=4)
    texts = [*PROMPTS[:3], "caf?", ""]
    states = encoders.states(made.weights["text"], made.tokenizer.encode(texts, made.context_length))
    draws = Draws(states[:4], states[4], np.arange(4), ["gallery"] * 4)
    cell = Cell("t2i", "f8", weights, sampler, steps, cfg)
    spec = {"path": cell.path, "draws": {}, "spacing": spacing, "digest": "any"}
    generate(
        [spec], tmp_path, Generator(made.unet, made.schedule, made.latent_size, 4, seed), lambda cell: draws,
        lambda cell: made.weights["unet"],
        lambda z: encoders.decode(made.weights["autoencoder"], z / small_study.SCALE), print,
    )  # fmt: skip
    want = np.load(tmp_path / cell.path / "gallery.npy")
    assert want.shape == (4, 16, 16, 3) and min(image.std() for image in want) > 1
    np.testing.assert_array_equal(images(tmp_path / "ours"), want)

    said = [Image.open(file).text for file in sorted((tmp_path / "ours").glob("*.png"))]
    assert [text.pop("prompt") for text in said] == texts[:4]
    assert [text.pop("image") for text in said] == ["0", "1", "2", "3"]
    chain = Chain(Plan(read_study(small_study.FILES)))
    assert said == 4 * [{
        "study": "small", "model": "f8", "weights": weights, "sampler": sampler, "spacing": spacing,
        "steps": str(steps), "cfg": f"{cfg:g}", "seed": str(seed), "software": f"ldmscale {version('ldmscale')}",
        "digest": chain.weights(cell),
    }]  # fmt: skip


def test_an_image_is_the_same_in_any_batch(here, tmp_path, capsys):
    assert sample(tmp_path / "all", "--count", "2", prompts=PROMPTS[:2]) == 0
    capsys.readouterr()
    assert sample(tmp_path / "parts", "--count", "2", "--batch", "2", prompts=PROMPTS[:2]) == 0
    lines = capsys.readouterr().err.splitlines()[1:]
    assert [line.split(" after")[0] for line in lines] == ["batch 1 of 2: 0001.png", "batch 2 of 2: 0003.png"]
    assert ["left" in line for line in lines] == [True, False]
    whole, parts = images(tmp_path / "all"), images(tmp_path / "parts")
    assert np.abs(np.int32(whole) - parts).max() <= 1  # a program of another batch rounds otherwise
    assert len({image.tobytes() for image in whole}) == 4
    assert [Image.open(tmp_path / "all" / f"000{n}.png").text["prompt"] for n in range(4)] == [
        PROMPTS[0], PROMPTS[0], "", ""]  # fmt: skip


def test_an_exported_folder_draws_the_same(here, study, exported, tmp_path, capsys):
    assert sample(tmp_path / "study", "--seed", "3") == 0
    arguments = ["sample", "--pipeline", str(exported), *asked(PROMPTS), *SETTINGS, "--seed", "3"]
    assert main([*arguments, "--out", str(tmp_path / "folder")]) == 0
    np.testing.assert_array_equal(images(tmp_path / "study"), images(tmp_path / "folder"))
    ours, theirs = (Image.open(tmp_path / name / "0001.png").text for name in ("study", "folder"))
    assert theirs.pop("pipeline") == str(exported) and theirs.pop("made_by") == ours["software"]
    assert ours == theirs


# ---------------------------------------------------------------- what sample refuses


def test_what_the_study_does_not_have(here, capsys, tmp_path):
    rest = [*CONFIG, "--prompt", "x", "--out", tmp_path / "out"]
    assert "no model 'f9'; it has f4, f8" in refused(capsys, "sample", "--model", "f9", *rest)
    said = refused(capsys, "sample", "--model", "f8", "--weights", "pretrain-30", *rest)
    assert "no weights 'pretrain-30', but pretrain-20, pretrain-40; 'final' is the last" in said
    said = refused(capsys, "sample", "--model", "f4", *rest)
    assert (
        "run `snakemake results/small/models/f4/pretrain.json --profile profiles/local --configfile smoke.yaml sm"
        in said
    )
    for name, value, words in [
        ("steps", 1000, "at most 999"), ("sampler", "euler", "one of ddim, ddpm, dpmpp2m"),
        ("spacing", "linspace", "one of leading, trailing"), ("seed", 2**32, "at most 4294967295"),
    ]:  # fmt: skip
        said = refused(capsys, "sample", "--model", "f8", f"--{name}", value, *rest)
        assert f"{name} is " in said and words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("cfg", "-1"), ("cfg", "nan"), ("cfg", "x"), ("steps", "0"), ("count", "0")]
)
def test_numbers_that_are_none(capsys, option, value):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "--model", "f8", "--prompt", "x", "--out", "out", f"--{option}={value}"])
    assert stopped.value.code == 2 and f"argument --{option}: '{value}' is not a" in capsys.readouterr().err


def test_the_samplers_of_the_help_are_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert ", ".join(SAMPLERS).replace(", codi", " or codi") in said


def test_stale_and_missing_results_are_refused(copy, capsys):
    rest = [*CONFIG, "--prompt", "x", "--out", "out"]
    (copy / "latents" / "latents.json").unlink()
    said = refused(capsys, "sample", "--model", "f8", *rest)
    assert "run `snakemake results/small/latents/latents.json --profile" in said
    edit(copy / "models" / "f8" / "pretrain.json", digest="0")
    said = refused(capsys, "sample", "--model", "f8", *rest)
    assert "models/f8/pretrain.json was made from a different config" in said


def test_a_checkpoint_that_the_config_asks_for_since_training(copy, capsys):
    manifest = copy / "models" / "f8" / "pretrain.json"
    edit(manifest, weights={"pretrain-20": json.loads(manifest.read_text())["weights"]["pretrain-20"]})
    said = refused(capsys, "sample", "--model", "f8", *CONFIG, "--prompt", "x", "--out", "out")
    assert (
        "has not finished what 'pretrain-40' of 'f8' needs: run `snakemake results/small/models/f8/pretrain.json"
        in said
    )


def test_images_are_not_written_over(here, tmp_path, capsys):
    (tmp_path / "0002.png").touch()
    rest = ["sample", "--model", "f8", *CONFIG, "--prompt", "x", "--count", "3"]
    assert "0002.png is there already" in refused(capsys, *rest, "--out", tmp_path)
    assert "cannot be made (File exists)" in refused(capsys, *rest, "--out", tmp_path / "0002.png")


def test_broken_weights_draw_nothing(copy, capsys):
    """Infinite latents are black as pixels."""
    net = UNetConfig(**read_study(small_study.FILES).net_params("f8"))
    weights = small_study.random_weights(net, 3)
    weights["conv_out"]["bias"][:] = 1e38
    small_study.save_tree(copy / "models" / "f8" / "pretrain" / "pretrain-40.safetensors", weights)
    assert sample("out") == 1
    assert "latents are not finite" in capsys.readouterr().err and not list(copy.glob("../../out/*"))


def test_outside_a_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "run this in the folder of ldmscale's Snakefile" in refused(
        capsys, "sample", "--model", "f8", "--prompt", "x", "--out", "out"
    )
    assert "no pipeline of diffusers" in refused(capsys, "sample", "--pipeline", ".", "--prompt", "x", "--out", "out")
    said = refused(capsys, "sample", "--pipeline", ".", "--weights", "final", "--prompt", "x", "--out", "out")
    assert "use them with --model" in said


# ---------------------------------------------------------------- export


def test_an_export_is_whole_readable_and_leaves_nothing_else(exported):
    files = sorted(str(file.relative_to(exported)) for file in exported.rglob("*") if file.is_file())
    assert files == [
        "ldmscale.json", "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "text_encoder/model.safetensors", "tokenizer/special_tokens_map.json", "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    (exported.parent / "probe").touch()
    modes = {file.stat().st_mode & 0o777 for file in exported.rglob("*") if file.is_file()}
    assert modes == {(exported.parent / "probe").stat().st_mode & 0o777}
    assert exported.stat().st_mode & 0o777 == exported.parent.stat().st_mode & 0o777
    assert {path.name for path in exported.parent.iterdir()} == {"f8", "probe"}


def test_an_export_over_something_is_refused(here, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for target in ("full", "full/notes.txt"):
        said = refused(capsys, *EXPORT, tmp_path / target)
        assert "is there already" in said
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert main([*EXPORT, "--weights", "pretrain-20", str(tmp_path / "empty")]) == 0
    assert json.loads((tmp_path / "empty" / "ldmscale.json").read_text())["weights"] == "pretrain-20"


def test_an_export_that_fails_leaves_nothing(here, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_index", lambda name: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([*EXPORT, str(tmp_path / "f8")]) == 130
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- folders of diffusers


UNET_15 = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
UNET_21 = {
    **UNET_15, "_diffusers_version": "0.10.0.dev0", "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
    "dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False,
    "use_linear_projection": True, "upcast_attention": True, "class_embed_type": None,
}  # fmt: skip
VAE_15 = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT_15 = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
    "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768,
    "torch_dtype": "float32", "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
}  # fmt: skip
TEXT_21 = {**TEXT_15, "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
           "num_hidden_layers": 23, "projection_dim": 512}  # fmt: skip
PNDM_15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def test_stable_diffusions_own_configs_are_its_networks(tmp_path):
    file = tmp_path / "config.json"
    assert unet_config(written(file, UNET_15)) == (UNetConfig(320, context_width=768), 64)
    assert unet_config(written(file, UNET_21)) == (UNetConfig(320, heads=(5, 10, 20, 20), context_width=1024), 64)
    assert autoencoder_config(written(file, VAE_15)) == (AutoencoderConfig(), 0.18215)
    for config, name in ((TEXT_15, "stable-diffusion-1"), (TEXT_21, "stable-diffusion-2")):
        tower = TEXT_ENCODERS[name]
        assert text_tower(written(file, config)) == type(tower)(**{**vars(tower), "mlp": 4 * tower.width})


def test_the_schedule_is_the_folders(folder):
    def read(**changes):
        file = written(folder / "scheduler" / "scheduler_config.json", {**PNDM_15, **changes})
        made = pipeline.of_folder(folder)
        assert file.exists() and made.origin["model"] == "f8"
        return made.schedule, made.spacing

    schedule, spacing = read(beta_end=0.02, num_train_timesteps=500)
    assert (schedule.steps, schedule.kind, schedule.beta_end) == (500, "scaled_linear", 0.02)
    assert spacing == {"ddim": "leading", "ddpm": "leading", "dpmpp2m": "linspace", "codi": "grid"}
    assert read(_class_name="DDIMScheduler", timestep_spacing="trailing")[1]["ddim"] == "trailing"
    assert read(beta_schedule="linear", timestep_spacing="leading")[0].kind == "linear"


def test_the_tokenizers_length_counts(folder):
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=5)
    assert pipeline.of_folder(folder).context_length == 5
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=1000000000000000019884624838656)
    assert pipeline.of_folder(folder).context_length == 12


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"},
         'prediction_type is "v_prediction", but must be "epsilon"'),
        ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "schedule kind is 'squaredcos_cap"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is true"),
        ("scheduler/scheduler_config.json", {"beta_start": "x"}, 'beta_start is "x", but must be a positive number'),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "must be \"StableDiffusionPipeline\""),
        ("unet/config.json", {"_class_name": "Transformer2DModel"}, 'but must be "UNet2DConditionModel"'),
        ("unet/config.json", {"in_channels": 9}, "in_channels is 9, but must be the vae's latent_channels, 4"),
        ("unet/config.json", {"cross_attention_dim": 8}, "but must be the text_encoder's hidden_size, 16"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, 'embed_type is "text_time", but must be null'),
        ("unet/config.json", {"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block is [1, 2]"),
        ("unet/config.json", {"layers_per_block": [1, 2]}, "but must be one number for every level"),
        ("unet/config.json", {"block_out_channels": [8, 12]}, "whole multiples of the first, 8"),
        ("unet/config.json", {"block_out_channels": "8"}, "must be positive whole numbers"),
        ("unet/config.json", {"block_out_channels": [8, 0]}, "must be positive whole numbers"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"]}, "for each of the 2 levels"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]}, "down_block_types"),
        ("unet/config.json", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "but must be down_block_types backwards"),
        ("unet/config.json", {"attention_head_dim": [3, 4]}, "unet/config.json: filters: 8 gives a level of 8"),
        ("unet/config.json", {"sample_size": "gone"}, "sample_size is null"),
        ("unet/config.json", {"made_up": 1}, "the key 'made_up', which is unknown here"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor is 0.1, but must be null"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor is 0, but must be a positive number"),
        ("vae/config.json", {"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, "up_block_types"),
        ("vae/config.json", {"mid_block_add_attention": None}, "must be true or false"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "text_encoder/config.json: clip activation: 'relu'"),
        ("text_encoder/config.json", {"architectures": ["CLIPTextModelWithProjection"]}, 'must be "CLIPTextModel"'),
        ("text_encoder/config.json", {"vocab_size": 400}, "has 300 tokens, but text_encoder 400"),
    ],
)  # fmt: skip
def test_a_folder_of_another_kind_is_refused(folder, capsys, file, changes, said):
    edit(folder / file, **changes)
    where = refused(capsys, "sample", "--pipeline", folder, "--prompt", "x", "--out", folder / "out")
    assert said in where and where.startswith(f"error: {folder}")


def test_a_folder_with_a_hole_is_refused(folder, capsys):
    def said():
        return refused(capsys, "sample", "--pipeline", folder, "--prompt", "x", "--out", folder / "out")

    (folder / "model_index.json").unlink()  # of parts put together by hand
    assert pipeline.of_folder(folder).scale == small_study.SCALE
    (folder / "vae" / "config.json").write_text("{")
    assert "vae/config.json is not JSON" in said()
    (folder / "vae" / "config.json").write_text("[]")
    assert "vae/config.json does not hold a JSON object" in said()
    (folder / "vae" / "config.json").unlink()
    assert "vae/config.json cannot be read (No such file or directory)" in said()
    shutil.rmtree(folder / "vae")
    assert "must have the folders unet, vae, text_encoder, tokenizer, scheduler, and lacks vae" in said()


def test_weights_that_the_config_does_not_describe_are_refused(folder):
    edit(folder / "unet" / "config.json", layers_per_block=2)
    with pytest.raises(UserError, match="unet lacks the tensor"):
        pipeline.of_folder(folder).weights  # noqa: B018
