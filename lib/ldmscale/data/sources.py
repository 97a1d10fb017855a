"""The sources that a config can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldmscale.data.coco import CocoSource
from ldmscale.data.folder import FolderSource
from ldmscale.data.scenes import SceneSource
from ldmscale.data.source import Source
from ldmscale.data.tars import TarSource
from ldmscale.storage import fetch


def open_source(
    spec: dict[str, Any],
    image_size: int,
    counts: dict[str, int | None],
    seed: int,
    index: str | Path,
    workers: int = 1,
) -> Source:
    """The source that ``data.train`` or ``data.evaluation`` describes, with ``counts`` of each split.

    ``index``: a folder where a source of many files may keep lists of them, made by ``workers`` processes.
    """
    kind = spec["source"]
    if kind == "scenes":
        return SceneSource(image_size, counts["train"], counts["tuning"], counts["heldout"], seed)
    paths = {key: fetch(spec[key]) for key in ("annotations", "images") if key in spec}
    common = {"image_size": image_size, "fit": spec["fit"], "on_error": spec["on_error"], "seed": seed,
              "heldout": counts["heldout"], "tuning": counts["tuning"]}  # fmt: skip
    if kind == "folder":
        return FolderSource(paths["images"], **common)
    if kind == "webdataset":
        return TarSource(paths["images"], **common, index=index, workers=workers)
    return CocoSource(**paths, **common, split_by=spec["split_by"])
