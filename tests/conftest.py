"""Fixtures that every kind of test uses: configs as Snakemake merges them, and one compile cache for the session."""

from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

import ldmscale  # noqa: F401  before JAX: it sets the compiler's flags
from ldmscale.runtime import use_compile_cache

REPO = Path(__file__).resolve().parents[1]
SCHEMA = REPO / "schemas" / "config.schema.json"


def merged(*overlays):
    """``config.yaml`` with overlays (names under ``configs/``, or dicts) merged over it as Snakemake does."""
    config = yaml.safe_load((REPO / "config.yaml").read_text())
    for overlay in overlays:
        if isinstance(overlay, str):
            overlay = yaml.safe_load((REPO / "configs" / overlay).read_text())
        update_config(config, overlay)
    return config


@pytest.fixture
def embedded():
    return merged()


@pytest.fixture
def smoke():
    return merged("smoke.yaml")


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    """One cache of compiled programs for the tests and for every job that they start."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDMSCALE_COMPILE_CACHE", str(folder))
        use_compile_cache(str(folder))
        yield folder
