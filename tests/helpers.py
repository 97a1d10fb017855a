"""For tests: configs as Snakemake merges them."""

from pathlib import Path

import yaml
from snakemake.utils import update_config

REPO = Path(__file__).resolve().parents[1]
SCHEMA = REPO / "schemas" / "config.schema.json"


def merged(*overlays: str | dict) -> dict:
    """``config.yaml`` with overlays (names under ``configs/``, or dicts) merged over it."""
    config = yaml.safe_load((REPO / "config.yaml").read_text())
    for overlay in overlays:
        if isinstance(overlay, str):
            overlay = yaml.safe_load((REPO / "configs" / overlay).read_text())
        update_config(config, overlay)
    return config


# Over the smoke study, whose transformer is in text-to-image and CoDi alone: every model in every task.
OF_ALL = {"experiments": {name: {"models": "all"} for name in ("samplers", "interpolation", "superres", "guided",
                                                               "superres_training", "dreambooth")}}  # fmt: skip


def own(model: str, **changes: object) -> dict:
    """The smoke study's family with pretraining settings of its own for one model."""
    models = merged("smoke.yaml")["models"]
    return {"models": [{**m, "pretrain": changes} if m["name"] == model else m for m in models]}
