"""What a schema cannot say of the family: its members, and the pretraining that they share."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ldmscale.config.study import DIT, DIT_KEYS, repeated


def family_rules(config: dict) -> Iterator[str]:
    """What is wrong with ``models``, a sentence each, and with what trains and shapes them."""
    names = [m["name"] for m in config["models"]]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"models: the name '{name}' is used {names.count(name)} times; every model needs its own"
    taken = {repeated(n, k) for n in names for k in range(1, config["training_seeds"])}
    for name in sorted(taken & set(names)):
        yield f"models: the name '{name}' is what another seed's training is called: choose another"
    unets = [m for m in config["models"] if not is_dit(m)]
    if unets != config["models"][: len(unets)]:
        yield "models: a U-Net stands after a transformer, but U-Nets come first, then the transformers"
    yield from _transformers(config)
    widths = [m["filters"] for m in unets]
    trained = [m["filters"] for m in unets if "weights" not in m]
    if widths != sorted(widths) or len(trained) != len(set(trained)):
        yield f"models: filters are {widths}, but must ascend, each used once"
    unet = config["unet"]
    levels = len(unet["channel_mult"])
    if len(unet["attention_levels"]) != levels:
        yield f"unet.attention_levels has {len(unet['attention_levels'])} entries, but channel_mult has {levels} levels"
    for model in unets:
        f = model["filters"]
        for key in {"width", "depth"} & set(model):
            yield f"models: '{model['name']}' has {key}, but is a U-Net: those have filters"
        if f % unet["norm_groups"]:
            yield (
                f"models: '{model['name']}' has filters {f}, "
                f"which unet.norm_groups {unet['norm_groups']} does not divide"
            )
        yield from _heads(model, unet)
        if "weights" in model and "pretrain" in model:
            yield f"models: '{model['name']}' has both weights and pretrain: a published model is not trained"
    for where, pretrain in [("pretrain", config["pretrain"])] + [
        (f"models: '{m['name']}': pretrain", {**config["pretrain"], **m["pretrain"]})
        for m in config["models"]
        if "pretrain" in m
    ]:
        steps = pretrain["checkpoints"]
        if steps != sorted(steps) or steps[-1] != pretrain["steps"]:
            yield f"{where}.checkpoints is {steps}, but must ascend and end at steps ({pretrain['steps']})"
        if steps != config["pretrain"]["checkpoints"]:
            yield f"{where}.checkpoints differs from pretrain.checkpoints: the family shares its checkpoints"
        if pretrain["warmup"] >= pretrain["steps"]:
            yield f"{where}.warmup is {pretrain['warmup']}, but must be under steps ({pretrain['steps']})"
    if config["diffusion"]["beta_start"] >= config["diffusion"]["beta_end"]:
        yield "diffusion.beta_start must be under diffusion.beta_end"


def is_dit(model: dict) -> bool:
    """Whether an entry of ``models`` is a transformer."""
    return model.get("family") == DIT


def _transformers(config: dict) -> Iterator[str]:
    dits, patch = [m for m in config["models"] if is_dit(m)], config["dit"]["patch"]
    side = config["data"]["image_size"] // 2 ** (len(config["autoencoder"]["channel_mult"]) - 1)
    if dits and side % patch:
        yield f"dit.patch is {patch}, but must divide the latents' side ({side})"
    sizes = [(m["width"] ** 2 * m["depth"], m["width"]) for m in dits]
    if sizes != sorted(set(sizes)):
        said = ", ".join(f"{m['width']} x {m['depth']}" for m in dits)
        yield f"models: transformers are {said}, but must ascend (in width^2 x depth), each used once"
    for model in dits:
        name, width, heads = f"models: '{model['name']}'", model["width"], model["heads"]
        for key in {"filters", "weights"} & set(model):
            more = "of which no published ones are read" if key == "weights" else f"those have {', '.join(DIT_KEYS)}"
            yield f"{name} has {key}, but is a transformer: {more}"
        if not isinstance(heads, int):
            yield f"{name} has heads {heads}, but a transformer's are one number"
        elif width % (step := math.lcm(4, heads)):
            yield f"{name} has width {width}, but must have a multiple of {step} (4 and its heads, {heads})"


def _heads(model: dict, unet: dict) -> Iterator[str]:
    levels = len(unet["channel_mult"])
    heads, whose = (model["heads"], "its heads") if "heads" in model else (unet["heads"], "unet.heads")
    by_level = [heads] * levels if isinstance(heads, int) else heads
    if len(by_level) != levels:
        yield f"models: '{model['name']}' has {len(by_level)} heads, but unet.channel_mult has {levels} levels"
        return
    attending = [*unet["attention_levels"][:-1], True]  # the middle block attends at the last level
    widths = [model["filters"] * m for m in unet["channel_mult"]]
    if any(on and width % h for width, h, on in zip(widths, by_level, attending, strict=False)):
        yield (
            f"models: '{model['name']}' has filters {model['filters']}, "
            f"whose attending levels {whose} {heads} does not divide"
        )
