"""What a reader must know to read a number: which study, which models, which data, features and sample counts."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ldmscale.config.study import UNET

SAMPLER_NAMES = {"ddim": "DDIM", "ddpm": "DDPM", "dpmpp2m": "DPM-Solver++", "codi": "CoDi's DDIM"}


@dataclass(frozen=True)
class StudyInfo:
    """The study behind a table of scores.

    ``data`` names the images and captions in words, ``fid_features`` and ``clip_features`` the networks behind the two
    metrics; ``n_heldout`` and ``n_tuning`` count prompts (one image each), ``image_size`` is in pixels a side;
    ``trainings`` of each model are behind every number; FID's features have ``fid_dimensions``.
    """

    name: str
    data: str
    fid_features: str
    clip_features: str
    n_heldout: int
    n_tuning: int
    image_size: int
    fid_dimensions: int
    trainings: int = 1

    def few(self, images: int) -> str:
        """What is to be said of an FID of so few ``images`` that their covariance is singular; of more: nothing."""
        if images > self.fid_dimensions:
            return ""
        return (
            f"FID of {images:,} images, no more than its features' {self.fid_dimensions:,} dimensions, is far above "
            "its value for many images: compare it only with FIDs of as many"
        )


@dataclass(frozen=True)
class ModelInfo:
    """A member of the study: width, parameters, GFLOPs (2 FLOPs a multiply-accumulate) of one evaluation.

    ``norm_cost`` is ``gflops`` relative to the study's reference model (filters = 320 in the paper). ``family`` is
    "unet" or "dit", a transformer, which has no ``filters``.
    """

    name: str
    filters: int | None
    params: int
    gflops: float
    norm_cost: float
    family: str = UNET


def models_of(scores: pd.DataFrame) -> list[ModelInfo]:
    """The models in a scores table, smallest first, with the sizes of their text-to-image networks where it has them.

    (Super-resolution widens a network's first convolution.)
    """
    columns = ["task", "model", "filters", "params", "gflops", "norm_cost"]
    first = scores.assign(family=scores.get("family", UNET))[[*columns, "family"]]
    first = first.sort_values("task", key=lambda task: task != "t2i", kind="stable")
    unique = first.drop_duplicates("model").sort_values(["params", "model"])
    return [
        ModelInfo(str(r.model), None if pd.isna(r.filters) else int(r.filters), int(r.params), float(r.gflops),
                  float(r.norm_cost), str(r.family))
        for r in unique.itertuples()
    ]  # fmt: skip


def format_count(n: float, digits: int = 3) -> str:
    """``n`` to ``digits`` significant digits with k, M, G or T: 865_900_000 is ``866M``, 4_900_200_000 ``4.9G``."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= scale * (1 - 0.5 * 10**-digits):
            return f"{float(f'{n / scale:.{digits}g}'):g}{unit}"
    return f"{n:.{digits}g}"


def format_params(params: int) -> str:
    """A parameter count in the paper's style: ``39M``, ``866M``, ``2.2B``; below a million ``48k``."""
    return format_count(params, 2 if params >= 1e9 else 3).replace("G", "B")


def named_by_params(model: ModelInfo) -> bool:
    """Whether the name is the parameter count already, as in the paper's family (``866M``, ``2B``)."""
    return model.name in (f"{model.params / 1e6:.0f}M", f"{model.params / 1e9:.0f}B", format_params(model.params))


def model_label(model: ModelInfo, joint: str = ", ") -> str:
    """The model's name with its parameter count, unless the name is the count."""
    return model.name if named_by_params(model) else f"{model.name}{joint}{format_params(model.params)}"
