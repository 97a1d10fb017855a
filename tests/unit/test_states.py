"""The newest state of a training: whole or absent, on disk and in a bucket, and restored on any devices."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ldmscale.training.states import FILE, States, _unreachable

RUN = Path(__file__).with_name("states_run.py")
TREE = {"step": np.int32(3), "params": [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)]}


def run(folder, part, **environment):
    """Exit status, standard output and error."""
    command, environment = [sys.executable, RUN, folder, part], {**os.environ, **environment}
    done = subprocess.run(command, env=environment, cwd=folder.parent, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_on_many_devices(tmp_path):
    """Saved on 8, killed while the next is saved; then everything that may be found in the folder."""
    status, _, said = run(tmp_path, "begin")
    assert status == -signal.SIGKILL, said
    assert sorted(name.partition(".")[0] for name in os.listdir(tmp_path / "states")) == ["7", "8"]
    status, found, said = run(tmp_path, "go-on")
    assert status == 0, said
    assert [what for what, so in json.loads(found).items() if not so] == []


def test_on_one_device_it_is_a_file(tmp_path):
    States(tmp_path, "digest").save(3, TREE)
    found = States(tmp_path, "digest").latest(TREE)
    assert found["step"] == 3 and all(
        np.array_equal(a, b) for a, b in zip(found["params"], TREE["params"], strict=True)
    )
    assert os.listdir(tmp_path) == [FILE]
    assert States(tmp_path, "other").latest(TREE) is None
    code = "import sys, ldmscale.training.loop; sys.exit('orbax' in ' '.join(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, "it costs half a second to import"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # of a number: it stays finite
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "empty": lambda path: path.write_bytes(b""),
    "another number": flip,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_none(tmp_path, damage):
    States(tmp_path, "digest").save(3, TREE)
    damage(tmp_path / FILE)
    assert States(tmp_path, "digest").latest(TREE) is None


@pytest.mark.parametrize(
    "error, way",
    [
        (ValueError("UNAVAILABLE: Error reading gs://bucket/states/7 [http_response_code='503']"), True),
        (ValueError("ABORTED: Error reading gs://b/s/7/manifest.ocdbt: All 6 retry attempts failed: CURL error"), True),
        (OSError(5, "Input/output error"), True),
        (FileNotFoundError(2, "No such file"), False),
        (ValueError("DATA_LOSS: CRC-32C checksum verification failed"), False),
    ],
)
def test_what_cannot_be_reached_is_not_taken_for_damaged(error, way):
    """Else a disk or a server that fails in passing costs a training all that it has done."""
    assert _unreachable(error) == way


def test_in_a_bucket(tmp_path):
    """A server that fails now and then, a process killed while it saves, no bucket, a server that fails for good."""
    pytest.importorskip("gcp_storage_emulator")
    from fake_gcs import BUCKET, fake_gcs

    folder = tmp_path / "model"
    with fake_gcs() as server:
        there = {"STORAGE_EMULATOR_HOST": server.url, "LDMSCALE_STORAGE": f"gs://{BUCKET}/root"}
        there["TENSORSTORE_GCS_HTTP_URL"] = "http://127.0.0.1:9"  # left by who has talked to another emulator
        server.faults = [["POST", 2, "503"], ["POST", 1, "cut"]]
        status, _, said = run(folder, "begin", **there)
        assert status == -signal.SIGKILL, said
        server.faults = [["DOWNLOAD", 1, "503"]]
        status, found, said = run(folder, "go-on-in-bucket", **there)
        assert status == 0, said
        assert [what for what, so in json.loads(found).items() if not so] == []
        status, _, said = run(folder, "begin", **there | {"LDMSCALE_STORAGE": "gs://nobody/root"})
        assert status == 1 and "UserError: states in gs://nobody/root/model/states could not be written" in said, said
        server.faults = [["POST", 10**9, "503"]]
        status, _, said = run(folder, "begin", **there | {"LDMSCALE_STORAGE": f"gs://{BUCKET}/other"})
        assert status == 1 and f"UserError: states in gs://{BUCKET}/other/model/states could not be written" in said, (
            said
        )
    assert os.listdir(tmp_path) == []
