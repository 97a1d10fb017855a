"""Scored cells → the tidy table: identity, sizes and costs beside every score."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ldmscale.cells.cell import Cell
from ldmscale.config.study import DIT, UNET
from ldmscale.metrics.finite import require_finite, require_numbers


def scores_table(rows: list[dict[str, Any]], family: dict[str, Any], costs: dict[str, Any]) -> pd.DataFrame:
    """One row a cell and split (of an interpolation, one a pair and alpha), from the scores' ``rows``, ``family``
    (see ``Chain.scores``) and ``costs`` (:func:`ldmscale.metrics.costs.study_costs`).

    Costs: ``cost`` is the paper's (normalised cost x U-Net steps; CoDi's adapter counts), ``nfe_cost`` counts both
    evaluations of a guided step, ``sampling_tflops`` is a whole image's (text encoder and decoder included),
    ``train_gflops`` the paper's training axis (GFLOPs of an evaluation x optimiser steps), ``train_flops`` what the
    last training run took (forwards, backwards, teachers, batch).

    ``family`` is "unet" or "dit"; a transformer has no ``filters`` (missing), but ``width`` and ``depth``, columns that
    a table of U-Nets alone does not have.

    Raises UserError for a score that is not finite, or that a cell lacks and its siblings have.
    """
    require_numbers(rows)
    table, dits = [], family.get("dit", {})
    for row in rows:
        cell = Cell.parse(row["cell"])
        member, training = family["trainings"][cell.model]
        plain = costs["models"][member]
        own = costs["finetuned"].get(cell.task, costs["models"])[member]["flops"]
        guided = 2 if cell.evaluates_twice else 1
        batch = family["finetune"].get(cell.task) or family["batch"][member]
        # The paper's axes know the family's networks, and an adapter; what an image takes is the task's own.
        norm_cost = plain["flops"] / costs["reference"]
        step = own / costs["reference"] if cell.task == "codi" else norm_cost
        table.append(
            {
                "cell": row["cell"],
                "task": cell.task,
                "model": member,
                "training": training,
                "family": DIT if member in dits else UNET,
                "filters": family["filters"][member],
                **({key: dits.get(member, {}).get(key) for key in ("width", "depth")} if dits else {}),
                "params": plain["params"],
                "gflops": plain["flops"] / 1e9,
                "norm_cost": norm_cost,
                "weights": cell.weights,
                "train_step": cell.train_step,
                "sampler": cell.sampler,
                "steps": cell.steps,
                "evaluations": row["evaluations"],
                "cfg": cell.cfg,
                **{k: v for k, v in row.items() if k not in ("cell", "evaluations")},
                "cost": step * row["evaluations"],
                "nfe_cost": step * row["evaluations"] * guided,
                "sampling_tflops": (own * row["evaluations"] * guided + _beside(cell.task, costs)) / 1e12,
                "train_gflops": plain["flops"] / 1e9 * cell.train_step,
                "train_flops": _training(cell.task, own, plain["flops"]) * batch * cell.train_step,
            }
        )
    frame = pd.DataFrame(table)
    if dits:  # of whole numbers, some missing
        frame = frame.astype(dict.fromkeys(("filters", "width", "depth"), "Int64"))
    require_finite(frame)
    return frame.sort_values(["params", "cell", "split"], ignore_index=True, kind="stable")


def with_seconds(table: pd.DataFrame, timing: dict[str, Any]) -> pd.DataFrame:
    """``table`` with ``seconds``, those that an image takes by ``timing``
    (:func:`ldmscale.metrics.timing.study_timing`), and ``seconds_machine``, what they were measured on, in words.

    An image takes what sampling takes to start, its U-Net evaluations and, as in ``sampling_tflops``, its captions
    encoded and its latent decoded; images are sampled, and captions encoded, in batches of the study's size.
    """
    beside = {part: timing[part]["median"] for part in ("encode", "decode", "caption")}
    networks, seconds = timing["networks"], []
    for path, member, evaluations in zip(*(table[c] for c in ("cell", "model", "evaluations")), strict=True):
        cell = Cell.parse(path)  # of a member's repeated training, too
        run = networks.get(cell.task, networks["t2i"])[member]["guided" if cell.evaluates_twice else "unguided"]
        seconds.append(run["start"]["median"] + evaluations * run["step"]["median"] + _beside(cell.task, beside))
    machine = f"{timing['machine']}, in batches of {timing['batch']}"
    return table.assign(seconds=seconds, seconds_machine=machine)


def _training(task: str, own: int, plain: int) -> int:
    """FLOPs of an optimiser step for each image of its batch; a backward pass counts as two forward ones.

    CoDi's student is guided (two evaluations), as is its target, and its teacher is the plain network, evaluated once;
    guided distillation evaluates its teacher twice.
    """
    return {"codi": 3 * 2 * own + 2 * own + plain, "guided": 3 * own + 2 * own}.get(task, 3 * own)


def _beside(task: str, costs: dict[str, Any]) -> Any:
    """FLOPs, or seconds, of what an image costs beside the U-Net: its captions encoded, its latent decoded.

    Guided tasks encode two captions; super-resolution encodes the empty one and the low-resolution image; a student of
    guided distillation has no empty caption.
    """
    if task == "superres":
        return costs["encode"] + costs["decode"] + costs["caption"]
    return costs["decode"] + (1 if task == "guided" else 2) * costs["caption"]
