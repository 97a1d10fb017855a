"""For tests only: made-up super-resolution rows and baselines, in the form that analysis reads."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from synthetic_study import SMALL_FAMILY, family

from ldmscale.cells.cell import Cell

MODELS = family(SMALL_FAMILY, 0.0493)[:4]
CURVE, SWEEP = 20, (4, 8, 10, 20, 40)  # steps of the finetuning curves, and of the last checkpoint
REPLICATES = 100


def scales(model: int, step: int, steps: int) -> float:
    """Size counts for much, finetuning for less, and a model needs the more sampling steps the larger it is."""
    return 40 - 4 * model - 2 * math.log2(1 + step / 100) + 12 * (1 + model) / steps


def superres_table(fid=scales, models=MODELS, checkpoints=(0, 100, 200, 400), noise=0.05, seed=0, **changes):
    """The table's super-resolution rows; ``noise`` is the replicates' spread beside the luck that all rows share."""
    rng = np.random.default_rng(seed)
    luck = rng.normal(size=REPLICATES)
    rows = []
    for i, model in enumerate(models):
        for step in checkpoints:
            for steps in SWEEP if step == checkpoints[-1] else (CURVE,):
                cell = Cell("superres", model.name, f"superres-{step}", "ddim", steps, 1.0)
                value = fid(i, step, steps)
                reps = (1.04 * value + luck + rng.normal(scale=noise, size=REPLICATES)).tolist()
                rows.append(
                    {
                        "cell": cell.path, **dataclasses.asdict(cell), "train_step": step, "split": "superres",
                        "n": 300, "filters": model.filters, "params": model.params + 100, "gflops": model.gflops * 1.01,
                        "norm_cost": model.norm_cost, "cost": model.norm_cost * steps,
                        "train_gflops": model.gflops * step, "fid": value, "fid_features": "made-up features",
                        "fid_reps": reps, "perceptual": value / 100, "perceptual_features": "LPIPS AlexNet",
                        "perceptual_reps": (np.array(reps) / 100).tolist(), "is1": 30 - value / 2,
                        "is_features": "made-up classes", "is_reps": (30 - np.array(reps) / 2).tolist(), **changes,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def baseline(name: str, fid: float, seed: int = 1) -> dict:
    reps = fid + np.random.default_rng(seed).normal(scale=0.05, size=REPLICATES)
    return {"baseline": name, "fid": fid, "fid_reps": reps.tolist(), "perceptual": fid / 100,
            "perceptual_reps": (reps / 100).tolist()}  # fmt: skip
