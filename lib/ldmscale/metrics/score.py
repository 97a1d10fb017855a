"""Images of a cell → its scores on each split, with the replicates that intervals come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldmscale.cells.cell import ON_PROMPTS, Cell
from ldmscale.data.encoded import load_array
from ldmscale.errors import UserError
from ldmscale.metrics import interpolation
from ldmscale.metrics.bootstrap import mean_replicates
from ldmscale.metrics.clip_score import clip_scores
from ldmscale.metrics.features import Features
from ldmscale.metrics.finite import require_numbers
from ldmscale.metrics.real import Real
from ldmscale.provenance import is_current, read_json, read_manifest, write_manifest
from ldmscale.storage import StorageError, remove

SPLITS = ("tuning", "heldout")
# What a cell of each task is scored on.
FILES = {**dict.fromkeys(ON_PROMPTS, SPLITS), "interpolation": (interpolation.FILE,),
         "superres": ("superres",), "dreambooth": ("dreambooth", "class")}  # fmt: skip


@dataclass(frozen=True)
class Scorer:
    """What every cell of a study is scored against.

    ``features`` maps uint8 [N,S,S,3] to (FID features [N,D], CLIP embeddings [N,E]); ``real`` holds each split's real
    images, ``text`` the prompts' CLIP embeddings [N,E]; ``ends`` [P,2,E] and ``alphas`` say what was interpolated.
    ``label`` and ``clip_label`` name the networks behind FID and CLIP score. ``dinov2`` is what
    :func:`ldmscale.metrics.dinov2.dinov2_features` gives, or None.
    """

    features: Features
    label: str
    clip_label: str
    real: Mapping[str, Real]
    text: Mapping[str, np.ndarray]
    ends: np.ndarray
    alphas: list[float]
    replicates: int
    seed: int
    dinov2: tuple[Callable[[np.ndarray], np.ndarray], str] | None = None

    def rows(self, task: str, folder: Path) -> list[dict[str, Any]]:
        """Rows of the cell of ``task`` whose images lie in ``folder``."""
        if task == "interpolation":
            _, embeddings = self.features(load_array(folder / f"{interpolation.FILE}.npy"))
            label = {"fid_features": self.label, "clip_features": self.clip_label}
            return [label | row for row in interpolation.interpolation_rows(embeddings, self.ends, self.alphas)]
        return [self.row(split, load_array(folder / f"{split}.npy")) for split in SPLITS]

    def row(self, split: str, images: np.ndarray) -> dict[str, Any]:
        """Scores of ``images`` uint8 [N,S,S,3], image i drawn for prompt i of ``split``."""
        features, embedding = self.features(images)
        clip, real = clip_scores(embedding, self.text[split]), self.real[split]
        dinov2, dinov2_label = self.dinov2 or (None, None)
        seen = dinov2(images) if dinov2 else None
        return {
            "split": split,
            "n": len(images),
            "n_reference": real.fid.count,
            "fid_features": self.label,
            "clip": float(clip.mean()),
            "clip_features": self.clip_label,
            "clip_reps": mean_replicates(clip, self.replicates, self.seed).tolist(),
            **real.distances(features, embedding, seen, self.replicates, self.seed),
            **real.neighbours(features, self.replicates, self.seed),
            **({"dinov2_features": dinov2_label} if dinov2 else {}),
        }


def score(cells: list[dict[str, Any]], folder: Path, rows_of: Callable[[Cell, Path], list[dict[str, Any]]],
          keep_images: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of ``cells`` (see ``Chain.score``), one a cell and split (of an interpolation, one a pair and alpha), from
    ``rows_of`` (:func:`ldmscale.metrics.scorers.open_scorer`); a cell that is scored already is read back.

    Raises:
        UserError: a cell's images are missing, damaged or made from another config, or a score of it is not finite.
    """
    parsed = {c["path"]: Cell.parse(c["path"]) for c in cells}
    todo = {c["path"] for c in cells if not is_current(folder / c["path"] / "score.json", "score", c["score_digest"])}
    _require_images({folder / path: FILES[parsed[path].task] for path in sorted(todo)})
    rows = []
    for number, spec in enumerate(cells, 1):
        target = folder / spec["path"]
        done = target / "score.json"
        if spec["path"] in todo:
            sample = read_manifest(target / "sample.json", "generate", spec["digest"])
            common = {"cell": spec["path"], "evaluations": sample["evaluations"]}
            made = [{**common, **row} for row in rows_of(parsed[spec["path"]], target)]
            require_numbers(made)
            write_manifest(done, "score", spec["score_digest"], rows=made)
            say(f"{number}/{len(cells)}  {spec['path']}")
        if not keep_images:
            for split in SPLITS:
                remove(target / f"{split}.npy")
        rows += read_json(done)["rows"]
    return rows


def _require_images(cells: Mapping[Path, tuple[str, ...]]) -> None:
    """Refuse cells whose images are gone or damaged, once their manifests are out of the way of drawing them again."""
    lost = []
    for folder, files in cells.items():
        try:
            for name in files:
                load_array(folder / f"{name}.npy")
        except StorageError:  # no word on the images
            raise
        except UserError:
            (folder / "sample.json").unlink(missing_ok=True)
            lost.append(folder)
    if lost:
        more = f" and of {len(lost) - 1} more cells" if lost[1:] else ""
        raise UserError(
            f"the images of {lost[0]}{more} are gone or damaged (sampling.keep_images: false removes them once they "
            "are scored): run `snakemake --forcerun generate` to draw them again"
        )
