"""Fixtures that every kind of test uses: configs, and one cache of compiled programs for the session."""

import pytest
from helpers import merged
from hypothesis import settings

import ldmscale  # noqa: F401  before JAX: it sets the compiler's flags
from ldmscale.runtime import use_compile_cache

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """What shares a process: the tests of the finished smoke study (first, they take longest), and those of a file."""
    workflow = [item for item in items if "workflow" in item.path.parts]
    smoke = [item for item in workflow if "study" in item.fixturenames]
    first = {item: place for place, item in enumerate([*smoke, *(item for item in workflow if item not in smoke)])}
    items.sort(key=lambda item: first.get(item, len(items)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("smoke study" if item in smoke else item.path.stem))


@pytest.fixture
def embedded():
    return merged()


@pytest.fixture
def smoke():
    return merged("smoke.yaml")


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    """For the tests and for every job that they start."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDMSCALE_COMPILE_CACHE", str(folder))
        use_compile_cache(str(folder))
        yield folder
