"""What a figure is given, and the few ways in which figures read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ldmscale.analysis.selection import select
from ldmscale.analysis.study import ModelInfo, StudyInfo
from ldmscale.cells.cell import Cell
from ldmscale.config.study import UNET
from ldmscale.errors import UserError

if TYPE_CHECKING:
    from ldmscale.models.unet import UNetConfig


@dataclass(frozen=True)
class Architecture:
    """What Fig. 2 draws: the U-Net of the model ``name``, on square latents ``latent_size`` pixels a side and text
    states [context_length, unet.context_width]; ``text_encoder`` and ``decoder`` name the two other networks."""

    name: str
    unet: UNetConfig
    latent_size: int
    context_length: int
    text_encoder: str
    decoder: str


@dataclass(frozen=True)
class FigureData:
    """Everything that a figure may read.

    ``scores`` is the tidy table, ``experiments`` the cells of each experiment, ``settings`` the figure's own section of
    the config, ``previews`` gives a cell's images of the gallery prompts (uint8 [K,H,W,3], image k for ``gallery[k]``;
    of an interpolation [P*A*N,H,W,3], see ``interpolation``, the config's own section), ``models`` the family,
    smallest first. ``architecture`` is for Fig. 2 alone. ``arrays`` gives what the pictures of a downstream task stand
    beside, by name ("superres/lr", "dreambooth/<subject>/images"); ``subjects`` are DreamBooth's (class_name, prompts,
    live), by name; ``baselines`` the score rows of super-resolution without a model; ``timing`` is how fast
    the networks are (:func:`ldmscale.metrics.timing.study_timing`), ``fits`` the manifest of
    :func:`ldmscale.analysis.fits.study_fits`.
    """

    scores: pd.DataFrame
    experiments: Mapping[str, Sequence[Cell]]
    settings: Mapping[str, Any]
    previews: Callable[[Cell], np.ndarray]
    gallery: Sequence[str]
    study: StudyInfo
    models: Sequence[ModelInfo]
    architecture: Architecture | None = field(default=None)
    interpolation: Mapping[str, Any] | None = field(default=None)
    arrays: Callable[[str], np.ndarray] | None = field(default=None)
    subjects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    baselines: Sequence[Mapping[str, Any]] = field(default=())
    timing: Mapping[str, Any] = field(default_factory=dict)
    fits: Mapping[str, Any] = field(default_factory=dict)

    def cells(self, setting: str = "experiment") -> list[Cell]:
        """The cells of the experiment that ``setting`` names."""
        name = self.require(setting)
        if not self.experiments.get(name):
            raise UserError(f"a figure's {setting} is '{name}', which is not among the experiments of the config")
        return list(self.experiments[name])

    def rows(self, setting: str = "experiment", models: Sequence[ModelInfo] | None = None) -> pd.DataFrame:
        """The scores (both splits) of the experiment that ``setting`` names, of ``models`` alone where given."""
        rows = select(self.scores, self.cells(setting))
        return rows if models is None else rows[rows["model"].isin([m.name for m in models])]

    def require(self, setting: str) -> Any:
        """The figure's ``setting``; ``UserError`` where its section of the config has none."""
        if setting not in self.settings:
            raise UserError(f"a figure's section of the config has no '{setting}'")
        return self.settings[setting]

    @property
    def metric(self) -> str:
        """What the figure draws: its setting ``metric``, FID without one."""
        return self.settings.get("metric", "fid")

    @property
    def axis(self) -> str:
        """The cost that the figure draws it against: its setting ``axis``, the paper's without one."""
        return self.settings.get("axis", "cost")

    def shown(self, cells: Sequence[Cell]) -> list[ModelInfo]:
        """The models to show, smallest first: those of ``settings["models"]``, else those of ``cells`` that are of one
        family (see :meth:`of_a_family`)."""
        there = {cell.model for cell in cells}
        names = {m.name for m in self.of_a_family([m for m in self.models if m.name in there])}
        unknown = set(self.settings.get("models", ())) - there
        if unknown:
            known = ", ".join(m.name for m in self.models if m.name in there)
            raise UserError(f"a figure shows the model '{min(unknown)}', which its experiment lacks (it has {known})")
        return [m for m in self.models if m.name in names]

    def of_a_family(self, models: Sequence[ModelInfo]) -> list[ModelInfo]:
        """Those of ``models`` that ``settings["models"]`` names; without it the U-Nets, or all where there are none."""
        if "models" in self.settings:
            return [m for m in models if m.name in self.settings["models"]]
        return [m for m in models if m.family == UNET] or list(models)

    def prompt(self, index: int) -> str:
        """The gallery prompt ``index``."""
        if not 0 <= index < len(self.gallery):
            raise UserError(f"a figure shows gallery prompt {index}, but the gallery has {len(self.gallery)} (from 0)")
        return self.gallery[index]

    def picture(self, cell: Cell, index: int) -> np.ndarray:
        """The image of gallery prompt ``index`` in ``cell``: uint8 [H,W,3]."""
        self.prompt(index)  # refuses an index that the gallery lacks
        images = np.asarray(self.previews(cell))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(self.gallery):
            raise UserError(
                f"the previews of {cell.path} are {images.dtype} {list(images.shape)}: "
                f"they should be uint8 [{len(self.gallery)},H,W,3], one image a gallery prompt"
            )
        return images[index]
