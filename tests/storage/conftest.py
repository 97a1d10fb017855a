"""A bucket that fails at will, and a working folder that keeps its files in it."""

import pytest
from fake_gcs import BUCKET, fake_gcs

from ldmscale import bucket, storage


@pytest.fixture(scope="session")
def server():
    with fake_gcs() as proxy:
        yield proxy


@pytest.fixture
def gcs(server, tmp_path, monkeypatch):
    """The proxy before the bucket, whose folder of the test's name is the storage root of an empty working folder."""
    server.faults, server.seen = [], []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv(storage.ROOT, f"gs://{BUCKET}/{tmp_path.name}")
    monkeypatch.setattr(bucket, "WAITS", (0.01, 0.01, 0.01))
    bucket.listed.cache_clear()
    bucket._connected.cache_clear()
    return server
