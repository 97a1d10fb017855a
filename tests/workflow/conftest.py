"""The finished smoke study, made once for all tests of the workflow, and folders to run it in."""

import pytest
from folders import Folder, cpu_seconds


@pytest.fixture
def folder(tmp_path) -> Folder:
    """A folder in which nothing has been run."""
    return Folder(tmp_path / "fresh")


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Folder:
    """The finished smoke study. Not to be changed: copy it."""
    finished = Folder(tmp_path_factory.mktemp("study") / "finished")
    with cpu_seconds() as finished.seconds:
        finished.run()
    return finished


@pytest.fixture
def copy(study, tmp_path) -> Folder:
    """The finished smoke study, to change."""
    return study.copy(tmp_path / "copy")
