"""Where files are kept, without a bucket: nothing is imported, nothing is left."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import REPO

from ldmscale import storage
from ldmscale.bucket import StorageError, parts
from ldmscale.config.check import check
from ldmscale.errors import UserError

SCHEMA = REPO / "schemas" / "config.schema.json"


@pytest.mark.parametrize(
    ("root", "path", "uri"),
    [
        ("gs://b", "results/s/x.npy", "gs://b/results/s/x.npy"),
        ("gs://b/run/", Path("results/./s/x.npy"), "gs://b/run/results/s/x.npy"),
        ("gs://b/run", "../x.npy", None),
        ("", "results/x.npy", None),
    ],
)
def test_uri(monkeypatch, root, path, uri):
    monkeypatch.setenv(storage.ROOT, root)
    assert storage.uri(path) == uri
    assert storage.uri(Path.cwd() / path) == uri


def test_uris_and_paths():
    assert parts("gs://b/a/c.npy") == parts(str(Path("gs://b/a/c.npy"))) == ("b", "a/c.npy")
    assert parts("gs://b") == ("b", "")
    assert storage.is_uri("gs://b/x") and storage.is_uri(Path("gs://b/x")) and not storage.is_uri("results/gs")
    with pytest.raises(StorageError, match="gs://// is no URI of a bucket: it must be like gs://bucket/name"):
        parts("gs:////")


@pytest.mark.parametrize("root", ["results", "gs://", "gs://Bucket/x", "s3://bucket", "gs://b//x"])
def test_a_root_that_is_no_bucket(embedded, root):
    check(embedded | {"storage": "gs://bucket/a/b"}, SCHEMA)
    with pytest.raises(UserError, match=f"^config: storage is '{root}', but must be like gs://bucket/prefix$"):
        check(embedded | {"storage": root}, SCHEMA)


def test_without_a_root_there_are_only_files(tmp_path):
    code = (
        "import sys; from ldmscale.data.encoded import load_array, save_array; import numpy as np\n"
        "save_array('x.npy', np.arange(3)); print(load_array('x.npy').sum())\n"
        "print([m for m in ('jax', 'gcsfs', 'aiohttp', 'google', 'fsspec') if m in sys.modules])"
    )
    env = {name: value for name, value in os.environ.items() if name != storage.ROOT}
    env["PYTHONPATH"] = str(Path(storage.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stdout.split("\n")[:2] == ["3", "[]"], done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    assert np.load(tmp_path / "x.npy").tolist() == [0, 1, 2]
