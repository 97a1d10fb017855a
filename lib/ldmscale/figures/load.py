"""From a study's results folder to what figures, tables and the summary read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ldmscale.analysis.study import StudyInfo, models_of
from ldmscale.cells.cell import ON_PROMPTS, Cell
from ldmscale.data.encoded import load_array
from ldmscale.figures.data import Architecture, FigureData
from ldmscale.text import one_line


def study_info(label: dict[str, Any], scores: pd.DataFrame) -> StudyInfo:
    """What every caption says of the study; ``label`` as in ``Chain.report``."""
    train, evaluation = label["sources"]
    names = [_source_name(source) for source in (train, evaluation) if source]
    heldout = scores[scores["split"] == "heldout"]
    return StudyInfo(
        name=label["study"],
        data=one_line(" / ".join(dict.fromkeys(names))),
        fid_features=str(heldout["fid_features"].iloc[0]),
        clip_features=str(heldout["clip_features"].iloc[0]),
        n_heldout=int(heldout["n"].iloc[0]),
        n_tuning=int(scores.loc[scores["split"] == "tuning", "n"].iloc[0]),
        image_size=label["image_size"],
        fid_dimensions=label["fid_dimensions"],
        trainings=int(scores["trainings"].max()),
    )


def _source_name(source: dict[str, Any]) -> str:
    if source["source"] == "scenes":
        return "procedural scenes"
    if "annotations" not in source:
        return Path(source["images"]).name
    return Path(source["annotations"]).parent.name or Path(source["annotations"]).stem


def experiments_of(params: dict[str, Any]) -> dict[str, list[Cell]]:
    """The experiments named in ``params`` (see ``Chain.report``), as cells."""
    return {name: [Cell.parse(path) for path in paths] for name, paths in params["experiments"].items()}


def figure_data(
    params: dict[str, Any], scores: pd.DataFrame, results: Path, beside: Mapping[str, Mapping[str, Any]]
) -> FigureData:
    """What the figure of ``params`` (see ``Chain.figure``) reads; ``results`` is the folder of the study's results,
    ``beside`` holds the manifests of the stages that the figure shows beside its cells, by name."""
    network = params["network"]

    def previews(cell: Cell) -> np.ndarray:
        folder = results / "cells" / cell.path
        return load_array(folder / ("gallery.npy" if cell.task in ON_PROMPTS else f"{cell.task}.npy"))

    architecture = None
    if network:
        from ldmscale.models.unet import UNetConfig  # here, so that the other figures need not start JAX

        network = {**network, "unet": UNetConfig(**network["unet"])}
        architecture = Architecture(**network, text_encoder="CLIP text tower", decoder="KL decoder")
    return FigureData(
        scores=scores,
        experiments=experiments_of(params),
        settings=params["settings"],
        previews=previews,
        gallery=params["gallery"],
        interpolation=params["interpolation"],
        arrays=lambda name: load_array(results / f"{name}.npy"),
        subjects=beside.get("subjects", {}).get("subjects", {}),
        baselines=beside.get("baselines", {}).get("rows", ()),
        timing=beside.get("timing", {}).get("timing", {}),
        fits=beside.get("fits", {}),
        study=study_info(params["label"], scores),
        models=models_of(scores),
        architecture=architecture,
    )
