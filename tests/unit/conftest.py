"""What unit tests share."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def saved_often():
    """Runs of a few dozen steps save a state each tenth of the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldmscale.training.loop.SAVES", (1, 1000))
        yield
