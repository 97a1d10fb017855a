"""The finished smoke study, made once for all tests of the workflow, and folders to run it in."""

import os

import pytest
from filelock import FileLock
from folders import Folder


@pytest.fixture
def folder(tmp_path) -> Folder:
    """A folder in which nothing has been run."""
    return Folder(tmp_path / "fresh")


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Folder:
    """The finished smoke study, made by the first process of the tests that wants it. Not to be changed: copy it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    shared = shared / "smoke"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / "lock"):
        there = (shared / "finished").exists()
        finished = Folder(shared / "finished")
        if not there:
            finished.run()
    return finished


@pytest.fixture
def copy(study, tmp_path) -> Folder:
    """The finished smoke study, to change."""
    return study.copy(tmp_path / "copy")
