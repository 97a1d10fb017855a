"""Fixtures that every kind of test uses: configs, and one cache of compiled programs for the session."""

import os

import pytest
from helpers import merged
from hypothesis import settings

import ldmscale  # noqa: F401  before JAX: it sets the compiler's flags
from ldmscale.runtime import use_compile_cache

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_modifyitems(items):
    """What takes longest comes first, so that it is not left alone at the end."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)


@pytest.fixture
def embedded():
    return merged()


@pytest.fixture
def smoke():
    return merged("smoke.yaml")


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    """For the tests and for every job that they start, in all processes of the tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDMSCALE_COMPILE_CACHE", str(folder))
        use_compile_cache(str(folder))
        yield folder
