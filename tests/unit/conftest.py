"""What unit tests share."""

import pytest


@pytest.fixture(autouse=True)
def saved_often(monkeypatch):
    """Runs of a few dozen steps save a state each tenth of the way."""
    monkeypatch.setattr("ldmscale.training.loop.SAVES", (1, 1000))
