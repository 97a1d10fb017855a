"""The sources that a config can name."""

from __future__ import annotations

from typing import Any

from ldmscale.data.coco import CocoSource
from ldmscale.data.scenes import SceneSource
from ldmscale.data.source import Source


def open_source(spec: dict[str, Any], image_size: int, counts: dict[str, int | None], seed: int) -> Source:
    """The source that ``data.train`` or ``data.evaluation`` describes, with ``counts`` of each split."""
    if spec["source"] == "scenes":
        return SceneSource(image_size, counts["train"], counts["tuning"], counts["heldout"], seed)
    keys = ("annotations", "images", "fit", "split_by", "on_error")
    return CocoSource(
        **{key: spec[key] for key in keys},
        image_size=image_size,
        tuning=counts["tuning"],
        heldout=counts["heldout"],
        seed=seed,
    )
