"""The scorer of each task: what turns the folder of one of its cells into rows of the tidy table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldmscale.cells.cell import Cell
from ldmscale.data.encoded import Prompts, load_array
from ldmscale.metrics.dinov2 import dinov2_features
from ldmscale.metrics.dreambooth_score import SubjectNetworks, dino_features, dreambooth_row
from ldmscale.metrics.features import study_features
from ldmscale.metrics.perceptual import lpips_distance
from ldmscale.metrics.real import Real, reference_files
from ldmscale.metrics.score import SPLITS, Scorer
from ldmscale.metrics.superres import SuperresScorer, image_classes
from ldmscale.models.clip import CLIPConfig

Rows = Callable[[Cell, Path], list[dict[str, Any]]]


def open_scorer(params: dict[str, Any], weights: Any, folders: Mapping[str, Path]) -> Rows:
    """``rows(cell, folder of its images)`` of the task of ``params`` (see ``Chain.score``).

    ``weights`` are CLIP's; ``folders`` are those of the stages that the task is scored against, by name. Raises
    UserError for files of networks that do not fit.
    """
    if params["task"] == "superres":
        restored = superres_scorer(params, weights, folders)
        return lambda cell, folder: [restored.row(load_array(folder / "superres.npy"))]
    clip, names = CLIPConfig(**params["clip"]), params["features"]
    features, label = study_features(clip, weights, names["clip"], names["inception"])
    if params["task"] == "dreambooth":
        lpips = _lpips(params)
        dino = dino_features(params["dino"]) if params["dino"] else None
        return _dreambooth(
            folders["subjects"], SubjectNetworks(features, label, names["clip"], dino, lpips.get("alex"))
        )
    prompts = Prompts.load(folders["prompts"])
    dinov2 = dinov2_features(params["dinov2"]["weights"]) if params["dinov2"] else None
    stored = {split: [load_array(folders["reference"] / name) for name in reference_files(split, bool(dinov2))]
              for split in SPLITS}  # fmt: skip
    real = {split: Real(*arrays) for split, arrays in stored.items()}
    scorer = Scorer(features, label, names["clip"], real, prompts.embeddings, prompts.ends, params["alphas"],
                    params["replicates"], params["seed"], dinov2)  # fmt: skip
    return lambda cell, folder: scorer.rows(cell.task, folder)


def superres_scorer(params: dict[str, Any], weights: Any, folders: Mapping[str, Path]) -> SuperresScorer:
    """What sets of super-resolved images are scored against: cells', and the baselines'."""
    clip, names = CLIPConfig(**params["clip"]), params["features"]
    features, label = study_features(clip, weights, names["clip"], names["inception"])
    captions = Prompts.load(folders["prompts"]).embeddings["tuning"]
    classes, class_label = image_classes(names["inception"], float(weights["logit_scale"]), captions, names["clip"])
    hr = load_array(folders["pairs"] / "hr.npy")
    return SuperresScorer(features, label, hr, features(hr)[0], classes, class_label, _lpips(params),
                          params["replicates"], params["seed"])  # fmt: skip


def _lpips(params: dict[str, Any]) -> dict[str, Any]:
    return {net: lpips_distance(net, **files) for net, files in params["lpips"].items() if files}


def _dreambooth(folder: Path, networks: SubjectNetworks) -> Rows:
    def rows(cell: Cell, images: Path) -> list[dict[str, Any]]:
        drawn, of_class = (load_array(images / f"{name}.npy") for name in ("dreambooth", "class"))
        real, prompts = (load_array(folder / cell.subject / f"{name}.npy") for name in ("images", "embeddings"))
        return [dreambooth_row(cell.subject, drawn, of_class, np.asarray(real), prompts, networks)]

    return rows
