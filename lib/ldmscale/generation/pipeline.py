"""A text-to-image model whole, from prompts to pixels: a member of a finished study, or a folder of diffusers'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldmscale.cells.cell import Cell
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study
from ldmscale.data.tokenizer import Tokenizer, load_tokenizer
from ldmscale.diffusion.samplers import DEFAULT_SPACING
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.generation.cells import Generator
from ldmscale.generation.draws import Draws
from ldmscale.generation.encode import Encoders
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.autoencoder_weights import autoencoder_config
from ldmscale.models.clip import TextTower
from ldmscale.models.clip_weights import text_tower
from ldmscale.models.network import NetConfig, net_config
from ldmscale.models.published_config import PublishedConfig
from ldmscale.models.unet_weights import unet_config
from ldmscale.provenance import read_manifest
from ldmscale.training.encoders import load_encoder
from ldmscale.training.weights import load_weights

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
ORIGIN = "ldmscale.json"  # in an exported folder: which weights these are

# What a scheduler_config.json may say of the forward process, with diffusers' defaults; how to sample is not read from
# it, but for the spacing of a scheduler that is one of our samplers.
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
            "timestep_spacing": None}  # fmt: skip
SCHEDULE_FIXED = {"prediction_type": "epsilon", "trained_betas": None, "rescale_betas_zero_snr": False}
SCHEDULERS = {"DDIMScheduler": "ddim", "DDPMScheduler": "ddpm", "DPMSolverMultistepScheduler": "dpmpp2m"}


@dataclass(frozen=True)
class Pipeline:
    """The networks with their weights, the tokenizer and the noise schedule.

    ``context_length`` is how many tokens a prompt has; ``scale`` what latents are multiplied by; ``latent_size`` their
    side in pixels; ``spacing`` that of the timesteps by sampler; ``origin`` says which weights these are. ``load``
    reads the parameters, under "unet", "autoencoder" and "text", when they are first asked for.
    """

    unet: NetConfig
    autoencoder: AutoencoderConfig
    text: TextTower
    tokenizer: Tokenizer
    context_length: int
    schedule: Schedule
    spacing: Mapping[str, str]
    scale: float
    latent_size: int
    origin: Mapping[str, str]
    load: Callable[[], Mapping[str, Any]]

    @cached_property
    def weights(self) -> Mapping[str, Any]:
        """Parameters by network."""
        return self.load()


def of_study(study: Study, model: str, weights: str = "final", overlays: Sequence[str] = ()) -> Pipeline:
    """``model`` of ``study`` with the ``weights`` of that name, from its results under the working folder.

    Weights are a checkpoint of pretraining, or a DreamBooth subject's.

    ``overlays`` are the configs that ``study`` was read with, for the command that a user is told to run.

    Raises:
        UserError: no such model or weights, or the study has not made them yet, or made them from another config.
    """
    if model not in study.models:
        raise UserError(f"the study '{study.name}' has no model '{model}'; it has {', '.join(study.models)}")
    names = study.checkpoints(model)
    name = names[-1] if weights == "final" else weights
    subjects = [w for run in study.weights("dreambooth", model) for w in run] if study.config["dreambooth"] else []
    if name not in (*names, *subjects):
        also = f"; or of a DreamBooth subject, such as {subjects[-1]}" if subjects else ""
        raise UserError(f"model '{model}' of the study '{study.name}' has no weights '{weights}', but "
                        f"{', '.join(names)}; 'final' is the last{also}")  # fmt: skip
    chain, results = Chain(Plan(study)), Path("results") / study.name
    task = "dreambooth" if name in subjects else "t2i"
    cell = Cell(task, model, name, "ddim", 1, 1.0)  # of a cell's weights, the digest knows task, model and name alone
    text_stage = "text_encoder" if study.config["text_encoder"] else "clip"
    trained = "published" if study.models[model].weights else "pretrain"
    member = results / "models" / model / f"{'dreambooth' if name in subjects else trained}.json"
    stages = {
        member: chain.model(task, model),
        results / "encoders" / "tokenizer.json": chain["tokenizer"],
        results / "encoders" / "autoencoder.json": chain["autoencoder"],
        results / "encoders" / f"{text_stage}.json": chain["text"],
    }
    scale = study.config["autoencoder"]["scale"]
    if not scale:
        stages[results / "latents" / "latents.json"] = chain["latents"]
    made = {p.stem: read_manifest(p, p.stem, params["digest"]) for p, params in stages.items() if p.is_file()}
    missing = [path for path in stages if path.stem not in made]
    if member not in missing and name not in made[member.stem]["weights"]:
        missing.append(member)  # made when the config had fewer checkpoints
    if missing:
        files = f" --configfile {' '.join(map(str, overlays))}" if overlays else ""
        raise UserError(f"the study '{study.name}' has not finished what '{name}' of '{model}' needs: run "
                        f"`snakemake {' '.join(map(str, missing))} --profile profiles/local{files}`")  # fmt: skip
    unet, text = net_config(study.net_params(model)), TextTower(**study.text_params())
    autoencoder = AutoencoderConfig(**study.autoencoder_params())

    def load() -> dict[str, Any]:
        encoders = results / "encoders"
        return {
            "unet": load_weights(made[member.stem]["weights"][name], unet),
            "autoencoder": load_encoder(encoders / "autoencoder.json", chain["autoencoder"]["digest"], autoencoder),
            "text": load_encoder(encoders / f"{text_stage}.json", chain["text"]["digest"], text),
        }

    return Pipeline(
        unet, autoencoder, text, load_tokenizer(made["tokenizer"]["file"]), text.context_length,
        Schedule(**study.config["diffusion"]), study.config["sampling"]["spacing"],
        scale or made["latents"]["scale"], study.latent_size,
        {"study": study.name, "model": model, "weights": name, "digest": chain.weights(cell)}, load,
    )  # fmt: skip


def of_folder(folder: str | Path) -> Pipeline:
    """What a folder that diffusers' ``StableDiffusionPipeline`` loads holds, such as Stable Diffusion 1.5's.

    Raises:
        UserError: naming the file and the key where it is another kind of pipeline or network, or misses something.
    """
    folder = Path(folder)
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"{folder} is no pipeline of diffusers: it must have the folders {', '.join(PARTS)}, "
                            f"and lacks {part}")  # fmt: skip
    if (folder / "model_index.json").is_file():
        PublishedConfig(folder / "model_index.json", {}, {"_class_name": "StableDiffusionPipeline"})
    unet, latent_size = unet_config(folder / "unet" / "config.json")
    autoencoder, scale = autoencoder_config(folder / "vae" / "config.json")
    text = text_tower(folder / "text_encoder" / "config.json")
    tokenizer = load_tokenizer(folder / "tokenizer")
    channels = autoencoder.latent_channels
    for key, have, need, whose in (
        ("in_channels", unet.in_channels, channels, "vae's latent_channels"),
        ("out_channels", unet.out_channels, channels, "vae's latent_channels"),
        ("cross_attention_dim", unet.context_width, text.width, "text_encoder's hidden_size"),
    ):
        if have != need:
            raise UserError(f"{folder / 'unet' / 'config.json'}: {key} is {have}, but must be the {whose}, {need}")
    if tokenizer.vocab_size != text.vocab_size:
        raise UserError(f"{folder / 'tokenizer'} has {tokenizer.vocab_size} tokens, but text_encoder {text.vocab_size}")
    schedule, spacing = _scheduler(folder / "scheduler" / "scheduler_config.json")

    def load() -> dict[str, Any]:
        return {
            "unet": load_weights(folder / "unet", unet),
            "autoencoder": load_weights(folder / "vae", autoencoder),
            "text": load_weights(folder / "text_encoder", text),
        }

    origin = {"pipeline": str(folder)}
    if (folder / ORIGIN).is_file():
        origin |= {key: str(value) for key, value in PublishedConfig(folder / ORIGIN, {}, {}).given.items()}
    return Pipeline(
        unet, autoencoder, text, tokenizer, _context_length(folder / "tokenizer", text), schedule, spacing, scale,
        latent_size, origin, load,
    )  # fmt: skip


def _scheduler(path: Path) -> tuple[Schedule, dict[str, str]]:
    stored = PublishedConfig(path, SCHEDULE, SCHEDULE_FIXED)
    schedule = stored.made(
        Schedule,
        stored.whole("num_train_timesteps"),
        stored["beta_schedule"],
        stored.number("beta_start"),
        stored.number("beta_end"),
    )
    sampler = SCHEDULERS.get(stored.given.get("_class_name"))
    asked = {sampler: stored["timestep_spacing"]} if sampler and stored["timestep_spacing"] else {}
    return schedule, DEFAULT_SPACING | asked


def _context_length(folder: Path, text: TextTower) -> int:
    """Tokens of a prompt: what the tokenizer says, where that is under what the text encoder takes."""
    if not (folder / "tokenizer_config.json").is_file():
        return text.context_length
    stored = PublishedConfig(folder / "tokenizer_config.json", {"model_max_length": text.context_length}, {})
    return min(stored.whole("model_max_length"), text.context_length)


def draw(pipeline: Pipeline, prompts: Sequence[str], cell: Cell, spacing: str, seed: int,
         batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Image n of prompt n, in batches: their numbers and pixels, uint8 [b,S,S,3].

    Sampler, steps and CFG are the ``cell``'s. Image n has the noises of a cell's image n under ``seed`` (see
    :func:`ldmscale.generation.cells.image_keys`), whatever the batch. Raises UserError if latents are not finite.
    """
    weights = jax.device_put(dict(pipeline.weights))
    encoders = Encoders(pipeline.autoencoder, text=pipeline.text, batch=batch)
    generator = Generator(pipeline.unet, pipeline.schedule, pipeline.latent_size, batch, seed)
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(["", *prompts]))}
    states = encoders.states(weights["text"], pipeline.tokenizer.encode(list(place), pipeline.context_length))
    for start in range(0, len(prompts), batch):
        numbers = np.arange(start, min(start + batch, len(prompts)))
        rows = states[[place[prompts[n]] for n in numbers]]
        draws = Draws(rows, states[place[""]], numbers, [""] * len(rows))
        z = generator.latents(weights["unet"], cell, spacing, draws)
        if not np.isfinite(z).all():
            raise UserError(f"{cell.path}: latents are not finite: the weights, or the latents' scale, are broken")
        yield numbers, encoders.decode(weights["autoencoder"], z / pipeline.scale)
