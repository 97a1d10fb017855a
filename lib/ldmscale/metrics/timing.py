"""How long the study's networks take on the machine at hand: measured seconds of an image, part by part.

What runs are the programs that draw the cells (:mod:`ldmscale.generation`), from the same compile cache, on parameters
of the right shapes: the time of a dense network does not depend on their values.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldmscale.cells.cell import Cell
from ldmscale.diffusion.schedule import Schedule
from ldmscale.generation.cells import Generator
from ldmscale.generation.draws import Draws
from ldmscale.generation.encode import Encoders
from ldmscale.models.adapter import adapter_parameters
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.clip import TextTower
from ldmscale.models.network import NetConfig, net_config
from ldmscale.training.weights import Config, parameter_shapes

REPEATS = 3
# Sampling is timed in one step and in as many as take this long: a small network's step stands out of the noise.
LONG = 0.05  # seconds
MOST = 256  # steps


def study_timing(params: dict[str, Any], threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of an image in a batch of ``params["batch"]``, without guidance of twice as many, by network (``params``
    as in ``Chain["timing"]``).

    ``networks``: {task: {model: {"guided" | "unguided": {"step", "start"}}}}, where ``t2i`` stands for every task
    but CoDi; ``step`` is one of sampling (of a guided one both evaluations; a student that is told
    its guidance is unguided), ``start`` what sampling takes beside its steps (noises, transfers). ``encode``,
    ``decode``, ``caption``: the autoencoder's halves and one caption's text encoding. Each is {median, least, greatest}
    of ``repeats`` after a warm-up. ``machine`` is what they were measured on; programs of a CPU have ``threads``.
    """
    text, ae, batch = TextTower(**params["text"]), AutoencoderConfig(**params["ae"]), params["batch"]
    size, draw = params["latent_size"], np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape, np.float32)

    z, states = normal(batch, size, size, ae.latent_channels), normal(2 * batch, text.context_length, text.width)

    def sampling(net: NetConfig, weights: Any, task: str, guided: bool) -> dict[str, dict[str, float]]:
        generator = Generator(net, Schedule(**params["diffusion"]), size, batch, 0, adapted=task == "codi")
        cell = Cell("t2i", "", "", "ddim", 1, 2.0 if guided else 1.0)
        images = generator.at_once(2 * batch, cell.cfg)
        draws = Draws(states[:images], states[0], np.arange(images), [""] * images, None)

        def run(steps: int) -> Callable[[], object]:
            return lambda: generator.latents(weights, replace(cell, steps=steps), "leading", draws)

        more = _long_enough(run, min(MOST, params["diffusion"]["steps"] - 1))
        times = np.array(_times(run(1), run(more)))
        step = (times[1] - times[0]) / (more - 1)
        start = (times[0] - step).clip(min=0)
        return {"step": _spread(step / images), "start": _spread(start / images)}

    networks: dict[str, Any] = {}
    for task, models in params["networks"].items():
        for model, runs in models.items():
            net = net_config(runs["net"])
            weights = _weights(net)
            if task == "codi":
                weights = {"unet": weights, "adapter": adapter_parameters(weights)}
            found = networks.setdefault(task, {}).setdefault(model, {})
            for guided in runs["guided"]:
                name = "guided" if guided else "unguided"
                found[name] = sampling(net, weights, task, guided)
                say(f"{task} {model} {name}: {1e3 * found[name]['step']['median']:.3g} ms a step and image")

    encoders = Encoders(ae, text=text, batch=batch)
    ae_weights, text_weights = _weights(ae), _weights(text)
    images = draw.integers(0, 256, (batch, size * ae.factor, size * ae.factor, 3), np.uint8)
    tokens = draw.integers(0, text.vocab_size, (batch, text.context_length), np.int32)
    parts = {
        "encode": lambda: encoders.moments(ae_weights, images),
        "decode": lambda: encoders.decode(ae_weights, z),
        "caption": lambda: encoders.states(text_weights, tokens),
    }
    for run in parts.values():
        run()  # compiles
    beside = {name: _spread(np.array(_times(run)[0]) / batch) for name, run in parts.items()}
    return {"networks": networks, **beside, "machine": _machine(threads), "batch": batch, "repeats": REPEATS}


def _weights(config: Config) -> Any:
    """Parameters of the network's shapes, small and alike, so that nothing overflows."""
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), parameter_shapes(config))


def _long_enough(run: Callable[[int], Callable[[], object]], most: int) -> int:
    """The steps, at least 3, that take :data:`LONG` and twice as long as one step does; everything is warm then."""
    run(1)()  # compiles
    one, steps = _once(run(1)), min(3, most)
    while steps < most and _once(run(steps)) < max(LONG, 2 * one):
        steps = min(2 * steps, most)
    return steps


def _times(*runs: Callable[[], object]) -> list[list[float]]:
    """Seconds of :data:`REPEATS` calls of each of ``runs``, which take turns."""
    return [list(times) for times in zip(*([_once(run) for run in runs] for _ in range(REPEATS)), strict=True)]


def _once(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(values)), "least": float(values.min()), "greatest": float(values.max())}


def _machine(threads: int) -> str:
    """The accelerator's kind, or the processor's and the threads that its programs have."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {threads} thread" + "s" * (threads != 1)
