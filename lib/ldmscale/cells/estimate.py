"""What every stage of a study computes, in FLOPs, before anything runs: arithmetic over its plan.

Networks of the family, guidance and distillation are counted exactly; encoders by the traced numbers that a caller
hands over. A backward pass counts as two forward ones, element-wise work as none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ldmscale.cells.cell import ON_PROMPTS, Cell
from ldmscale.cells.cost import codi_ratio, flops, model_shape
from ldmscale.cells.plan import Plan

TRAIN = 3  # a forward and a backward pass, in forward ones
PROMPTS = 25  # of a DreamBooth subject
PHOTOS = 100  # of DIV2K's evaluation split, where super-resolution names a folder
INCEPTION = 2 * 5_713_216_096  # FLOPs of an image: torchvision's count of Inception v3's multiply-adds


@dataclass(frozen=True)
class Passes:
    """FLOPs of one image through the autoencoder's halves, and of one caption through the text encoder."""

    encode: int
    decode: int
    caption: int


@dataclass(frozen=True)
class Work:
    """What ``model`` (empty where it is for all) costs in one stage; ``what`` says in words what it does."""

    stage: str
    model: str
    flops: float
    what: str


def estimate(plan: Plan, passes: Passes, images: int | None) -> list[Work]:
    """The work of every stage that has any to speak of, in the order in which a study does it.

    ``images``: how many the training set has, None where that is not known, which leaves out encoding it. Trainings of
    the study's own autoencoder count; of its own CLIP, which is small, not.
    """
    return [*_encoded(plan, passes, images), *_trained(plan), *_measured(plan, passes)]


def _encoded(plan: Plan, passes: Passes, images: int | None) -> Iterator[Work]:
    section = plan.study.config["autoencoder"]
    if not section["weights"]:
        seen = section["train"]["steps"] * section["train"]["batch"]
        yield Work("autoencoder", "", TRAIN * seen * (passes.encode + passes.decode), f"{seen:,} images seen")
    if images:
        yield Work("latents", "", images * (passes.encode + passes.caption), f"{images:,} images encoded once")


def _trained(plan: Plan) -> Iterator[Work]:
    study, config = plan.study, plan.study.config
    asked = {(cell.task, cell.model) for cell in plan.cells}
    one = {name: flops(model_shape(study, model)) for name, model in study.models.items()}
    again = {name: TRAIN + study.devices(name)["remat"] for name in one}  # activations computed a second time
    for name, model in study.models.items():
        if not model.weights:
            seen = model.pretrain["steps"] * model.pretrain["batch"]
            yield Work("pretrain", name, again[name] * seen * one[name], f"{seen:,} images seen")
    for name in one:
        if ("superres", name) in asked:
            settings = config["superres"]["finetune"]
            seen = settings["steps"] * settings["batch"]
            yield Work("superres", name, again[name] * seen * one[name], f"{seen:,} images seen")
    for name in one:
        if ("dreambooth", name) in asked:
            section = config["dreambooth"]
            settings, prior, subjects = section["finetune"], section["prior"], len(section["subjects"])
            if prior:
                drawn = subjects * prior["images"]  # subjects of one class share them: at most
                evaluations = prior["steps"] * (1 if prior["cfg"] == 1.0 else 2)
                yield Work("class_images", name, drawn * evaluations * one[name], f"{drawn:,} images drawn")
            seen = subjects * settings["steps"] * settings["batch"] * (2 if prior else 1)
            yield Work("dreambooth", name, again[name] * seen * one[name], f"{seen:,} images seen")
    for name, model in study.models.items():
        if ("codi", name) in asked:
            settings = config["codi"]["finetune"]
            seen = settings["steps"] * settings["batch"]
            # Teacher once; student, trained, and its average, each with the adapter and guided by a second evaluation.
            evaluations = 1 + 2 * (again[name] + 1) * codi_ratio(model_shape(study, model))
            yield Work("codi", name, seen * evaluations * one[name], f"{seen:,} images seen")
    for name in one:
        if ("guided", name) in asked:
            section = config["guided"]
            stages = [section["finetune"], *[section["halving"]] * len(section["students"])]
            seen = sum(settings["steps"] * settings["batch"] for settings in stages)
            yield Work("guided", name, seen * (again[name] + 2) * one[name], f"{seen:,} images seen, teacher twice")


def _measured(plan: Plan, passes: Passes) -> Iterator[Work]:
    study = plan.study
    work, drawn, scored, cells = Counter(), Counter(), Counter(), Counter()
    for cell in plan.cells:
        shape, images = model_shape(study, study.models[cell.model]), _images(plan, cell)
        evaluations = cell.steps * (2 if cell.evaluates_twice else 1)
        each = evaluations * flops(shape) * (codi_ratio(shape) if cell.task == "codi" else 1)
        work[cell.model] += images * (each + passes.decode)
        drawn[cell.model] += images
        cells[cell.model] += 1
        scored[cell.model] += images if cell in plan.scored else 0
    for name in cells:
        yield Work("generate", name, work[name], f"{cells[name]:,} cells, {drawn[name]:,} images drawn")
    section = study.config["validation"]
    for name, model in study.members.items():
        seen = section["images"] * section["levels"] * len(study.checkpoints(name))
        yield Work("validation", name, seen * flops(model_shape(study, model)), f"{seen:,} losses")
    yield Work("score", "", sum(scored.values()) * _scoring(study.config, study.clip_params()),
               f"{sum(scored.values()):,} images scored")  # fmt: skip


def _images(plan: Plan, cell: Cell) -> int:
    """How many images ``cell`` draws."""
    config = plan.study.config
    counts = config["data"]["counts"]
    if cell.task in ON_PROMPTS:
        return len(config["gallery"]) + (counts["tuning"] + counts["heldout"] if plan.is_scored(cell) else 0)
    if cell.task == "interpolation":
        section = config["interpolation"]
        return len(section["pairs"]) * len(section["alphas"]) * section["noises"]
    if cell.task == "superres":
        return PHOTOS * config["superres"]["patches"] if config["superres"]["evaluation"] else counts["heldout"]
    return PROMPTS * config["dreambooth"]["images_per_prompt"] + config["dreambooth"]["class_images"]


def _scoring(config: dict[str, Any], clip: dict[str, Any]) -> int:
    """FLOPs of one image through what text-to-image cells are scored with."""
    total = vit_flops(clip["image_width"], clip["image_depth"], (clip["image_size"] // clip["patch"]) ** 2 + 1,
                      clip.get("image_mlp") or 4 * clip["image_width"])  # fmt: skip
    if config["metrics"]["inception"]:
        total += INCEPTION
    if config["metrics"]["dinov2"]:
        total += vit_flops(1024, 24, (224 // 14) ** 2 + 1, 4096)  # ViT-L/14, the usual one
    return total


def vit_flops(width: int, depth: int, tokens: int, mlp: int) -> int:
    """FLOPs of a vision transformer's blocks on one image."""
    return 2 * depth * tokens * (4 * width**2 + 2 * tokens * width + 2 * width * mlp)
