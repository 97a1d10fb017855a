"""For tests only: made-up DreamBooth rows, subjects and pictures, joined to a made-up study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ldmscale.analysis.study import ModelInfo
from ldmscale.cells.cell import Cell
from ldmscale.figures.data import FigureData

PROMPTS, IMAGES, CLASS_IMAGES, SIDE = 5, 2, 7, 8
FEATURES = {"subject_features": "tiny-clip image features", "clip_features": "tiny-clip",
            "diversity_features": "LPIPS AlexNet"}  # fmt: skip
REAL = {"hat_circle": (0.90, 0.95), "dog_2-b": (0.70, 0.85)}  # ceilings of DINO and CLIP-I


def score(model: int, step: int, measure: str) -> float:
    """Rises with size and finetuning, but for PRES, which falls with size and rises with finetuning."""
    base = {"dino": 0.4, "clip_i": 0.6, "clip_t": 0.25, "pres": 0.3, "div": 0.5}[measure]
    return base + (-0.02 if measure == "pres" else 0.03) * model + 0.1 * (step > 0)


def dreambooth_rows(
    models: Sequence[ModelInfo],
    subjects: Sequence[str] = tuple(REAL),
    steps: Sequence[int] = (0, 100, 200),
    score: Callable[[int, int, str], float] = score,
    noise: float = 0.01,
    luck: float = 0.05,
    seed: int = 0,
    sampling: tuple[str, int, float] = ("ddim", 20, 4.0),
) -> pd.DataFrame:
    """The table's rows. ``luck`` is of a prompt and common to all models and subjects, ``noise`` is each value's."""
    rng = np.random.default_rng(seed)
    prompts, classes = rng.normal(scale=luck, size=PROMPTS), rng.normal(scale=luck, size=CLASS_IMAGES)
    rows = []
    for i, model in enumerate(models):
        for step in steps:
            for subject in subjects:
                cell = Cell("dreambooth", model.name, f"dreambooth_{subject}-{step}", *sampling)
                real = dict(zip(("real_dino", "real_clip_i"), REAL[subject], strict=True))
                values = {
                    measure: (score(i, step, measure) + common + rng.normal(scale=noise, size=len(common))).tolist()
                    for measure, common in dict.fromkeys(("dino", "clip_i", "clip_t", "div"), prompts).items()
                }
                pres = score(i, step, "pres") + classes + rng.normal(scale=noise, size=CLASS_IMAGES)
                rows.append(
                    {
                        "cell": cell.path, **dataclasses.asdict(cell), "train_step": step, "split": "dreambooth",
                        "subject": subject, "filters": model.filters, "params": model.params, "gflops": model.gflops,
                        "norm_cost": model.norm_cost, "n": PROMPTS * IMAGES, **FEATURES, **values,
                        "pres": pres.tolist(), **real,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def with_dreambooth(data: FigureData, **changes) -> FigureData:
    """``data`` with an experiment "dreambooth": its rows (see :func:`dreambooth_rows`), subjects and pictures."""
    rows = dreambooth_rows(data.models, **changes)

    def previews(cell: Cell) -> np.ndarray:
        if cell.task != "dreambooth":
            return data.previews(cell)
        draw = np.random.default_rng([*cell.path.encode()])
        return draw.integers(0, 256, (PROMPTS * IMAGES, SIDE, SIDE, 3), np.uint8)

    def arrays(name: str) -> np.ndarray:
        draw = np.random.default_rng([*name.encode()])
        return draw.integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)

    def subject(word: str) -> dict:
        tails = ("in the jungle", "on $top$ of a <b>mirror</b>", "in the snow", "with a very long tail " * 20, "alone")
        return {"class_name": word, "prompts": [f"a {word} {tail}" for tail in tails], "live": word == "dog"}

    return dataclasses.replace(
        data,
        scores=pd.concat([data.scores, rows], ignore_index=True),
        experiments={**data.experiments, "dreambooth": [Cell.parse(path) for path in rows["cell"]]},
        subjects={"hat_circle": subject("circle"), "dog_2-b": subject("dog")},
        previews=previews,
        arrays=arrays,
    )
