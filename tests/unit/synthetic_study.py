"""For tests only: a made-up study (scores table, cells, random pictures) in the form that analysis and figures read.

The numbers follow a formula, so that tests know what an analysis must find; they are no measurements.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import product

import numpy as np
import pandas as pd

from ldmscale.analysis.study import ModelInfo, StudyInfo
from ldmscale.cells.cell import Cell
from ldmscale.cells.cost import steps_at_cost
from ldmscale.figures.data import Architecture, FigureData

PAPER_FAMILY = [
    ("39M", 64, 38_800_000, 53.0), ("83M", 96, 83_400_000, 99.7), ("145M", 128, 144_800_000, 159.9),
    ("223M", 160, 223_000_000, 233.6), ("318M", 192, 318_000_000, 320.8), ("430M", 224, 429_800_000, 421.4),
    ("558M", 256, 558_400_000, 535.6), ("704M", 288, 703_700_000, 663.2), ("866M", 320, 865_900_000, 804.3),
    ("2B", 512, 2_191_800_000, 1933.9), ("5B", 768, 4_900_200_000, 4195.1),
]  # fmt: skip
SMALL_FAMILY = [
    ("f8", 8, 61_000, 0.0042), ("f12", 12, 132_000, 0.0081), ("f16", 16, 230_000, 0.0135), ("f24", 24, 512_000, 0.0286),
    ("f32", 32, 905_000, 0.0493),
]  # fmt: skip
AWKWARD = r"50% off: pay $5 & get $x_1^2$ <b>two</b> \alpha_{cats} #1 ~ 'quotes' \frac{a}{b}"
LONG = "a very long prompt about a teddy bear on a skateboard, " * 12
DATA = "made-up numbers & random pictures"
STUDY = StudyInfo("synthetic_$x$", DATA, "made-up features", "made-up CLIP", 256, 128, 32, 64)


def family(rows: list[tuple], reference: float) -> list[ModelInfo]:
    return [ModelInfo(name, filters, params, gflops, gflops / reference) for name, filters, params, gflops in rows]


def fid(model: ModelInfo, family: list[ModelInfo], train: float, steps: int, cfg: float, sampler: str) -> float:
    """Better with size, training (``train`` in 0..1) and steps; the best CFG falls with steps; small models need fewer
    steps per unit of quality, so that they win at small costs."""
    rank = family.index(model) / max(1, len(family) - 1)
    best = 2.0 + 6.0 / math.sqrt(steps)
    speed = {"ddim": 1.0, "ddpm": 1.6, "dpmpp2m": 0.7}[sampler]
    return 26 - 5 * rank + 14 * (1 - train) ** 2 + 60 * speed / steps + 9 * math.log(cfg / best) ** 2


def make_study(
    models: list[ModelInfo],
    steps: tuple[int, ...],
    cfgs: tuple[float, ...],
    *,
    headline: tuple[int, float],
    checkpoints: tuple[int, ...] = (250, 500, 1000, 2000),
    costs: tuple[float, ...] = (3, 6, 8),
    gallery: tuple[str, ...] = ("a red circle", AWKWARD, LONG, "ten red apples."),
    image_size: int = 32,
    replicates: int = 40,
    noise: float = 0.3,
    point_noise: float = 0.1,
    fid_of=fid,
    seed: int = 0,
) -> FigureData:
    """A whole study on a grid of ``models`` x ``steps`` x ``cfgs``; ``fid_of`` replaces the formula of :func:`fid`,
    ``noise`` is the replicates' spread around it, ``point_noise`` the scores' own."""
    final = f"pretrain-{checkpoints[-1]}"
    names, by_name = [m.name for m in models], {m.name: m for m in models}

    def cells(samplers, weights, steps, cfgs):
        return [Cell("t2i", m, w, s, n, float(g)) for m, w, s, n, g in product(names, weights, samplers, steps, cfgs)]

    experiments = {
        "headline": cells(["ddim"], [final], [headline[0]], [headline[1]]),
        "training": cells(["ddim"], [f"pretrain-{c}" for c in checkpoints], [headline[0]], [headline[1]]),
        "grid": cells(["ddim"], [final], steps, cfgs),
        "samplers": cells(["ddpm", "dpmpp2m"], [final], steps, cfgs),
        "same_cost": [
            Cell("t2i", m.name, final, "ddim", n, headline[1])
            for m in models for n in sorted({steps_at_cost(c, m.norm_cost) for c in costs})
        ],
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    scored = dict.fromkeys(c for name in ("headline", "training", "grid", "samplers") for c in experiments[name])
    rows = []
    luck = {split: rng.normal(size=replicates) for split in ("tuning", "heldout")}
    for cell in scored:
        model = by_name[cell.model]
        train = 0.25 + 0.75 * (checkpoints.index(cell.train_step) + 1) / len(checkpoints)
        truth = fid_of(model, models, train, cell.steps, cell.cfg, cell.sampler)
        for split, n in (("tuning", STUDY.n_tuning), ("heldout", STUDY.n_heldout)):
            value = truth + rng.normal(scale=point_noise)
            clip = 0.33 - value / 1000
            rows.append(
                {
                    "cell": cell.path, **dataclasses.asdict(cell),
                    "family": model.family, "filters": model.filters, "params": model.params, "gflops": model.gflops,
                    "norm_cost": model.norm_cost, "train_step": cell.train_step, "evaluations": cell.steps,
                    "split": split, "n": n, "n_reference": n,
                    "fid": value, "fid_features": STUDY.fid_features,
                    "clip": clip, "clip_features": STUDY.clip_features,
                    "cost": model.norm_cost * cell.steps, "nfe_cost": 2 * model.norm_cost * cell.steps,
                    "sampling_tflops": (2 * model.gflops * cell.steps + 0.02 * models[-1].gflops) / 1000,
                    "train_gflops": model.gflops * cell.train_step,
                    "train_flops": 3 * model.gflops * 1e9 * 64 * cell.train_step,
                    # Replicates lie above the point, as a resample's FID does, and share the luck of the prompts.
                    "fid_reps": (1.04 * value + luck[split] + rng.normal(scale=noise, size=replicates)).tolist(),
                    "clip_reps": (clip + 1e-3 * luck[split] + rng.normal(scale=1e-4, size=replicates)).tolist(),
                }
            )  # fmt: skip

    def previews(cell: Cell) -> np.ndarray:
        draw = np.random.default_rng([seed, *cell.path.encode()])
        coarse = draw.integers(0, 256, size=(len(gallery), 8, 8, 3), dtype=np.uint8)
        return coarse.repeat(image_size // 8, axis=1).repeat(image_size // 8, axis=2)

    return FigureData(
        pd.DataFrame(rows), experiments, {}, previews, list(gallery),
        dataclasses.replace(STUDY, image_size=image_size), models,
    )  # fmt: skip


def small_study(**changes) -> FigureData:
    """Five small models, few steps, four guidance weights: the size of the embedded study."""
    return make_study(
        family(SMALL_FAMILY, 0.0493), (2, 4, 8, 20, 40), (1.5, 2.5, 4.0, 6.0), headline=(20, 4.0), **changes
    )


def paper_study(**changes) -> FigureData:
    """The paper's eleven models, step counts and guidance weights."""
    changes = {"costs": (6, 10, 12), "checkpoints": (25_000, 50_000, 100_000, 200_000, 350_000, 500_000), **changes}
    return make_study(
        family(PAPER_FAMILY, 804.3), (4, 6, 8, 10, 20, 50), (1.5, 2, 3, 4, 5, 6, 7, 8), headline=(50, 7.5), **changes
    )


ALPHAS = [0.0, 1.0, 0.2, 0.8, 0.5]  # in no order
NOISES = 40


def rows_between(progress, noise=0.0, span=0.2, pair=0, **columns) -> pd.DataFrame:
    """Rows of one cell of interpolation, whose similarity difference goes from -span/2 to span/2 by progress(alpha)."""
    draw = noise * np.random.default_rng(0).normal(size=(len(ALPHAS), NOISES))
    rows = []
    for alpha, wobble in zip(ALPHAS, draw, strict=True):
        half = span * (progress(alpha) - 0.5) / 2
        rows.append({"alpha": alpha, "pair": pair, "clip_a": (0.3 + half + wobble).tolist(),
                     "clip_b": [0.3 - half] * NOISES, **columns})  # fmt: skip
    return pd.DataFrame(rows)


def with_interpolation(data: FigureData, pairs: list[tuple[str, str]]) -> FigureData:
    """``data`` with an experiment of interpolation between the prompts of ``pairs``: the larger, the more bent."""
    steps = data.experiments["headline"][0].steps
    cells = [Cell("interpolation", m.name, "pretrain-1", "ddim", steps, 4.0) for m in data.models]
    tables = [
        rows_between(lambda a, bent=bent: a ** (1 + bent / 2), pair=pair, noise=0.01, cell=cell.path, task=cell.task,
                     model=cell.model, split="interpolation", clip_features=STUDY.clip_features, n=NOISES)
        for bent, cell in enumerate(cells)
        for pair in range(len(pairs))
    ]  # fmt: skip
    pictures = np.random.default_rng(0).integers(0, 256, (len(pairs) * len(ALPHAS) * NOISES, 8, 8, 3), np.uint8)
    return dataclasses.replace(
        data,
        scores=pd.concat([data.scores, *tables], ignore_index=True),
        experiments={**data.experiments, "interpolation": cells},
        previews=lambda cell: pictures if cell.task == "interpolation" else data.previews(cell),
        interpolation={"pairs": pairs, "alphas": ALPHAS, "noises": NOISES},
    )


def settings(data: FigureData, **values) -> FigureData:
    """``data`` with another section of figure settings."""
    return dataclasses.replace(data, settings=values)


def architecture(filters: int = 320, latent_size: int = 64, **changes) -> Architecture:
    """The paper's U-Net at ``filters``, or one of another shape."""
    from ldmscale.models.unet import UNetConfig

    unet = UNetConfig(filters, **changes)
    return Architecture(f"f{filters}", unet, latent_size, 77, "OpenCLIP ViT-H/14", "KL-f8 decoder")
