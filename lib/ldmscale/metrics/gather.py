"""Scored cells → the tidy table: identity, sizes and costs beside every score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from ldmscale.cells.cell import TASKS, Cell
from ldmscale.errors import UserError
from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.clip import TextModel, TextTower
from ldmscale.models.flops import count_flops, unet_cost
from ldmscale.models.unet import UNetConfig
from ldmscale.training.weights import parameter_shapes

GUIDED_EVALUATIONS = 2
CONDITIONED = "superres"  # its U-Net sees a second latent, its decoder's images begin at one that was encoded


def scores_table(rows: list[dict[str, Any]], family: dict[str, Any]) -> pd.DataFrame:
    """One row a cell and split (of an interpolation, one a pair and alpha), from the scores' ``rows`` and ``family``
    (see ``Chain.scores``).

    Costs: ``cost`` is the paper's (normalised cost x U-Net steps), ``nfe_cost`` counts both evaluations of a guided
    step, ``sampling_tflops`` is a whole image's (text encoder and decoder included), ``train_gflops`` the paper's
    training axis (GFLOPs of an evaluation x optimiser steps), ``train_flops`` what training took (3 x forward x batch).
    """
    text, size, channels = TextTower(**family["text"]), family["latent_size"], family["ae"]["latent_channels"]
    nets = {model: UNetConfig(**net) for model, net in family["models"].items()}
    costs = {model: unet_cost(net, size, text.context_length) for model, net in nets.items()}
    widened = {
        model: unet_cost(replace(net, in_channels=2 * net.in_channels), size, text.context_length)
        for model, net in nets.items()
        if CONDITIONED in family["finetune"]
    }
    reference = unet_cost(UNetConfig(**family["reference"]), size, text.context_length)
    ae = AutoencoderConfig(**family["ae"])
    fixed = encoder_flops(ae, text, (size, size, channels))

    def batch(cell: Cell) -> int:
        return family["finetune"].get(cell.task) or family["batch"][cell.model]

    table = []
    for row in rows:
        cell = Cell.parse(row["cell"])
        guided = GUIDED_EVALUATIONS if cell.cfg != 1.0 else 1
        # The paper's axes know the family's networks; what an image or a training run takes is the task's own.
        cost = costs[cell.model]
        own = widened[cell.model] if cell.task == CONDITIONED else cost
        norm_cost = cost.flops / reference.flops
        table.append(
            {
                "cell": row["cell"],
                "task": cell.task,
                "model": cell.model,
                "filters": nets[cell.model].filters,
                "params": cost.params,
                "gflops": cost.flops / 1e9,
                "norm_cost": norm_cost,
                "weights": cell.weights,
                "train_step": cell.train_step,
                "sampler": cell.sampler,
                "steps": cell.steps,
                "evaluations": row["evaluations"],
                "cfg": cell.cfg,
                **{k: v for k, v in row.items() if k not in ("cell", "evaluations")},
                "cost": norm_cost * row["evaluations"],
                "nfe_cost": norm_cost * row["evaluations"] * guided,
                "sampling_tflops": (own.flops * row["evaluations"] * guided + fixed[cell.task]) / 1e12,
                "train_gflops": cost.flops / 1e9 * cell.train_step,
                "train_flops": 3.0 * own.flops * batch(cell) * cell.train_step,
            }
        )
    frame = pd.DataFrame(table)
    bad = frame.loc[(frame["task"] == "t2i") & ~np.isfinite(frame[["fid", "clip"]]).all(axis=1), "cell"]
    if len(bad):
        raise UserError(f"the scores of {bad.iloc[0]} are not finite: its images or features are broken")
    return frame.sort_values(["filters", "cell", "split"], ignore_index=True, kind="stable")


def encoder_flops(ae: AutoencoderConfig, text: TextTower, latent: tuple[int, int, int]) -> dict[str, int]:
    """FLOPs of what an image costs beside the U-Net, by task: captions and images encoded, its latent decoded.

    Guided tasks encode two captions; super-resolution encodes the empty one and the low-resolution image.
    """
    network, encoder = Autoencoder(ae), TextModel(text)
    z = jax.ShapeDtypeStruct((1, *latent), jnp.float32)
    image = jax.ShapeDtypeStruct((1, latent[0] * ae.factor, latent[1] * ae.factor, 3), jnp.float32)
    passes = {
        method: count_flops(
            lambda p, x, m=method: network.apply({"params": p}, x, method=m), parameter_shapes(ae), seen
        )
        for method, seen in (("encode", image), ("decode", z))
    }
    tokens = jax.ShapeDtypeStruct((1, text.context_length), jnp.int32)
    caption = count_flops(lambda p, t: encoder.apply({"params": p}, t), parameter_shapes(text), tokens)
    usual = passes["decode"] + 2 * caption
    return {task: usual for task in TASKS} | {CONDITIONED: passes["encode"] + passes["decode"] + caption}
