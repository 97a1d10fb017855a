"""An exported model in diffusers' own pipeline: the same texts, noises and settings give the same images."""

import inspect
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import small_study
from peers import nchw, peer, randomise
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel

from ldmscale.cells.cell import Cell
from ldmscale.cli.main import main
from ldmscale.config.read import read_study
from ldmscale.generation import pipeline as pipelines
from ldmscale.generation.cells import Generator, image_keys
from ldmscale.generation.draws import Draws
from ldmscale.generation.encode import Encoders
from ldmscale.models import autoencoder_weights, clip_weights, unet_weights
from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.clip import TextTower
from ldmscale.models.unet import UNetConfig

torch = pytest.importorskip("torch")
LATENTS, IMAGES = 1e-4, 1e-3  # relative to the largest latent, to the images' range
SEED = 5
TEXTS = [
    "a large red circle on a white background",
    "",
    "  A Small\tSTAR  at night ",
    "ein großer Kreis, 大きな丸 🔴 e\u0301",
    "<|endoftext|> a star <|startoftext|> <|pad|>!",
    "a very long text " * 12,
]
CASES = [("ddim", steps, cfg) for steps, cfg in [(1, 4.0), (4, 1.0), (4, 7.5), (13, 1.0), (20, 4.0), (50, 7.5)]]
CASES += [("dpmpp2m", 5, 4.0), ("dpmpp2m", 20, 1.0), ("dpmpp2m", 20, 7.5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a study is, and an export of its model."""
    folder = tmp_path_factory.mktemp("small")
    small_study.make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*member("export"), "exported"]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    """diffusers' pipeline."""
    peer("transformers")
    pipe = peer("diffusers").StableDiffusionPipeline.from_pretrained(folder / "exported")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = read_study(small_study.FILES)
        made = pipelines.of_study(study, small_study.MODEL)
        made.weights  # noqa: B018  read while the folder is the working one
    return made


@pytest.fixture(scope="module")
def generator(ours):
    return Generator(ours.unet, ours.schedule, ours.latent_size, len(TEXTS), SEED)


@pytest.fixture(scope="module")
def encoders(ours):
    return Encoders(ours.autoencoder, text=ours.text, batch=len(TEXTS))


def member(command):
    return [command, "--model", small_study.MODEL, *(x for name in small_study.FILES for x in ("--config", name))]


def noise(pipeline):
    keys, _ = image_keys(SEED, np.arange(len(TEXTS)))
    shape = (pipeline.latent_size, pipeline.latent_size, pipeline.unet.in_channels)
    return np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))


def scheduled(pipe, sampler):
    """``pipe`` with the exported scheduler, or with that of ``sampler`` as the command's help says."""
    diffusers = peer("diffusers")
    exported = diffusers.DDIMScheduler.from_pretrained("exported", subfolder="scheduler")
    solver = diffusers.DPMSolverMultistepScheduler.from_config(exported.config, timestep_spacing="linspace")
    pipe.scheduler = {"ddim": exported, "dpmpp2m": solver}[sampler]
    return pipe


def test_it_is_loaded_as_what_it_is(theirs, ours):
    diffusers = peer("diffusers")
    assert type(theirs.scheduler) is diffusers.DDIMScheduler
    assert theirs.safety_checker is None and theirs.feature_extractor is None
    assert theirs.vae.config.scaling_factor == small_study.SCALE == ours.scale
    assert theirs.unet.config.sample_size == ours.latent_size
    assert theirs.tokenizer.model_max_length == ours.context_length == 12
    np.testing.assert_allclose(theirs.scheduler.betas.numpy(), ours.schedule.betas, rtol=1e-6)


def test_texts_travel(theirs, ours, encoders):
    tokens = theirs.tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(tokens, ours.tokenizer.encode(TEXTS, ours.context_length))
    states = encoders.states(ours.weights["text"], ours.tokenizer.encode(TEXTS, ours.context_length))
    with torch.no_grad():
        want = theirs.encode_prompt(TEXTS, "cpu", 1, False)[0].numpy()
    assert np.abs(states - want).max() <= LATENTS * np.abs(want).max()


@pytest.mark.parametrize(("sampler", "steps", "cfg"), CASES)
def test_images_are_the_same(theirs, ours, generator, encoders, sampler, steps, cfg):
    tokens = ours.tokenizer.encode([*TEXTS, ""], ours.context_length)
    states = encoders.states(ours.weights["text"], tokens)
    cell = Cell("t2i", "f8", "pretrain-40", sampler, steps, cfg)
    draws = Draws(states[:-1], states[-1], np.arange(len(TEXTS)), [""] * len(TEXTS))
    z = generator.latents(ours.weights["unet"], cell, ours.spacing[sampler], draws)
    net = Autoencoder(ours.autoencoder)
    decode = jax.jit(lambda z: net.apply({"params": ours.weights["autoencoder"]}, z, method="decode"))
    images = np.asarray(decode(z / ours.scale))

    pipe = scheduled(theirs, sampler)
    want = pipe(TEXTS, num_inference_steps=steps, guidance_scale=cfg, latents=nchw(noise(ours)), output_type="latent")
    with torch.no_grad():
        want_images = pipe.vae.decode(want.images / pipe.vae.config.scaling_factor).sample
    want, want_images = (x.numpy().transpose(0, 2, 3, 1) for x in (want.images, want_images))
    assert want_images.std() > 0.05, "flat images would show nothing"
    assert np.abs(z - want).max() <= LATENTS * np.abs(want).max()
    assert np.abs(images - want_images).max() <= IMAGES * np.ptp(want_images)


def test_the_commands_pixels_are_diffusers(theirs, ours, tmp_path):
    """From the command line to the PNG, against diffusers' call to the image; and from the exported folder."""
    arguments = ["--steps", "13", "--cfg", "4", "--seed", str(SEED), "--batch", "4"]
    arguments += [x for text in TEXTS for x in ("--prompt", text)]
    assert main([*member("sample"), *arguments, "--out", str(tmp_path / "study")]) == 0
    assert main(["sample", "--pipeline", "exported", *arguments, "--out", str(tmp_path / "folder")]) == 0
    files = [f"{n:04d}.png" for n in range(len(TEXTS))]
    mine, back = ([np.asarray(Image.open(tmp_path / d / f)) for f in files] for d in ("study", "folder"))
    np.testing.assert_array_equal(mine, back)
    pipe = scheduled(theirs, "ddim")
    want = pipe(TEXTS, num_inference_steps=13, guidance_scale=4, latents=nchw(noise(ours))).images
    assert np.abs(np.int32(mine) - np.int32([np.asarray(i) for i in want])).max() <= 1
    text = Image.open(tmp_path / "folder" / files[0]).text
    assert (text["study"], text["model"], text["pipeline"]) == ("small", small_study.MODEL, "exported")


def test_an_export_says_what_it_is_of(folder):
    said = json.loads((folder / "exported" / pipelines.ORIGIN).read_text())
    assert (said["study"], said["model"], said["weights"]) == ("small", small_study.MODEL, "pretrain-40")


# ---------------------------------------------------------------- folders that diffusers wrote


def published(folder, unet, activation):
    """A pipeline of diffusers in ``folder``, with random weights, in the way of Stable Diffusion's."""
    diffusers, transformers = peer("diffusers"), peer("transformers")
    alphabet = sorted(ByteLevel.alphabet())
    merges = ["r e", "re d</w>", "c i", "ci r", "c l", "cl e</w>", "s t", "a r</w>"]
    names = [*alphabet, *(f"{s}</w>" for s in alphabet), *(merge.replace(" ", "") for merge in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (source / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    text = transformers.CLIPTextConfig(
        vocab_size=len(names), hidden_size=unet["cross_attention_dim"], intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, hidden_act=activation, bos_token_id=len(names) - 2,
        eos_token_id=len(names) - 1,
    )  # fmt: skip
    parts = {
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(source, model_max_length=16),
        "text_encoder": transformers.CLIPTextModel(text),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=24,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        "unet": diffusers.UNet2DConditionModel(
            sample_size=12, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **unet,
        ),
        "scheduler": diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        ),
    }  # fmt: skip
    for seed, name in enumerate(("text_encoder", "vae", "unet")):
        randomise(parts[name].eval(), seed)
    pipe = diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    return pipe


@pytest.mark.parametrize(
    ("unet", "activation"),
    [
        ({"attention_head_dim": 4, "cross_attention_dim": 20, "use_linear_projection": False}, "quick_gelu"),  # 1
        ({"attention_head_dim": (2, 4), "cross_attention_dim": 24, "use_linear_projection": True}, "gelu"),  # 2
    ],
)
def test_a_folder_that_diffusers_saved_is_sampled_as_diffusers_samples_it(tmp_path, unet, activation):
    pipe = published(tmp_path, unet, activation)
    arguments = ["--steps", "7", "--cfg", "5", "--seed", str(SEED), *(x for text in TEXTS for x in ("--prompt", text))]
    assert main(["sample", "--pipeline", str(tmp_path / "pipeline"), *arguments, "--out", str(tmp_path / "out")]) == 0
    mine = [np.asarray(Image.open(tmp_path / "out" / f"{n:04d}.png"), np.int32) for n in range(len(TEXTS))]
    start = nchw(noise(pipelines.of_folder(tmp_path / "pipeline")))
    want = pipe(TEXTS, num_inference_steps=7, guidance_scale=5, latents=start).images
    assert np.std(mine) > 5, "flat images would show nothing"
    assert np.abs(mine - np.asarray([np.asarray(image, np.int32) for image in want])).max() <= 1


# ---------------------------------------------------------------- config.json, as the libraries understand it


def defaults(kind, of="diffusers"):
    """What ``kind`` of a library takes, and what it does where nothing is said."""
    parameters = inspect.signature(getattr(peer(of), kind).__init__).parameters
    return {k: p.default for k, p in parameters.items() if k not in ("self", "kwargs", "args")}


@pytest.mark.parametrize(
    ("module", "kind"), [(unet_weights, "UNet2DConditionModel"), (autoencoder_weights, "AutoencoderKL")]
)
def test_every_key_of_a_network_is_known_with_diffusers_default(module, kind):
    theirs = defaults(kind)
    assert set(theirs) == {*module.SHAPE, *module.FIXED, *module.FREE} - {"_class_name"}
    for key, value in theirs.items():
        value = list(value) if isinstance(value, tuple) else value
        if key in module.SHAPE:
            assert module.SHAPE[key] == value, key
        elif key in module.FIXED:
            fixed = module.FIXED[key]
            accepted = fixed if isinstance(fixed, tuple) else (fixed,)
            assert all(part in accepted for part in (value if isinstance(value, list) else [value])), key


def test_text_encoders_and_schedulers_have_their_libraries_defaults():
    config = peer("transformers").CLIPTextConfig()
    assert {key: getattr(config, key) for key in clip_weights.TEXT_SHAPE} == clip_weights.TEXT_SHAPE
    assert config.model_type == clip_weights.TEXT_FIXED["model_type"]
    for kind in (*pipelines.SCHEDULERS, "PNDMScheduler"):
        theirs = defaults(kind)
        known = {k: v for k, v in pipelines.SCHEDULE.items() if k != "timestep_spacing"}
        assert {key: theirs[key] for key in known} == known, kind
        assert theirs["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    "net",
    [
        UNetConfig(8, (1, 3), 1, (False, True), heads=(2, 6), norm_groups=4, context_width=10),
        UNetConfig(32, context_width=768, blocks_per_level=3, out_channels=8, guidance_width=256),
    ],
)
def test_a_unet_config_that_diffusers_wrote_is_read_back(net, tmp_path):
    """All keys there, those that we do not write too."""
    diffusers = peer("diffusers")
    with torch.device("meta"):
        diffusers.UNet2DConditionModel.from_config(unet_weights.diffusers_config(net, 24)).save_config(tmp_path)
    assert len(json.loads((tmp_path / "config.json").read_text())) > 40
    found, size = unet_weights.unet_config(tmp_path / "config.json")
    assert (replace(found, heads=found.level_heads), size) == (replace(net, heads=net.level_heads), 24)


def test_encoder_configs_that_the_libraries_wrote_are_read_back(tmp_path):
    net = AutoencoderConfig(8, (1, 2, 5), 3, 6, 4, mid_attention=False)
    with torch.device("meta"):
        written = autoencoder_weights.diffusers_config(net, 24, 0.3)
        peer("diffusers").AutoencoderKL.from_config(written).save_config(tmp_path)
    assert autoencoder_weights.autoencoder_config(tmp_path / "config.json") == (net, 0.3)
    tower = TextTower(width=12, depth=3, heads=4, mlp=20, activation="gelu", vocab_size=50, context_length=9)
    transformers = peer("transformers")
    config = transformers.CLIPTextConfig(**clip_weights.transformers_config(tower, pad_id=0))
    config.save_pretrained(tmp_path)
    assert clip_weights.text_tower(tmp_path / "config.json") == tower
