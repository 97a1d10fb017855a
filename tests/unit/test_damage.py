"""Files of the study with every single byte flipped, and cut at every length: read as they were written, or refused."""

import random

import numpy as np
import pandas as pd
import pytest

from ldmscale.data.encoded import load_array, save_array
from ldmscale.errors import UserError
from ldmscale.files import MARK
from ldmscale.metrics.scores_file import read_scores, write_scores
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.training.checkpoint import load_tree, read_metadata, save_tree

TREE = {"layer": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "bias": np.zeros(0, np.float16)}}
TABLE = pd.DataFrame(
    {"cell": ["a/b", "c/d"], "fid": [12.5, 7.25], "steps": [4, 8], "fid_reps": [[1.0, 2.0], [3.0, 4.0]]}
)


def array(path):
    return (lambda: save_array(path, np.arange(40, dtype=np.int16).reshape(5, 8))), lambda: load_array(path).tolist()


def manifest(path):
    content = {"weights": {"400": "step-400.safetensors"}, "scale": 0.18215, "seconds": float("nan")}
    return (lambda: write_manifest(path, "pretrain", "d" * 16, **content)), lambda: str(
        read_manifest(path, "pretrain", "d" * 16)
    )


def tree(path):
    def read():
        return {k: v.tolist() for k, v in load_tree(path, TREE)[0]["layer"].items()}

    return (lambda: save_tree(path, TREE, digest="abc", step=400)), read


def metadata(path):
    made = {"digest": "abc", "step": 400}

    def read():  # without both, a file is not taken for what a job looks for
        return found if (found := read_metadata(path)).keys() == made.keys() else made

    return (lambda: save_tree(path, TREE, **made)), read


def scores(path):
    return (lambda: write_scores(path, TABLE, "d" * 16)), lambda: read_scores(path, "d" * 16).to_json()


KINDS = {
    "array.npy": array, "manifest.json": manifest, "tree.safetensors": tree, "metadata.safetensors": metadata,
    "scores.parquet": scores,
}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    path = tmp_path / request.param
    write, read = KINDS[request.param](path)
    write()
    return path, read


def assert_whole_or_refused(path, content, read, right):
    path.write_bytes(content)
    try:
        assert read() == right
    except UserError as error:
        assert path.name in str(error)


def test_a_flipped_bit_is_refused_or_changes_nothing(kind):
    path, read = kind
    whole, right, draw = path.read_bytes(), read(), random.Random(0)
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << draw.randrange(8)
        assert_whole_or_refused(path, bytes(flipped), read, right)


def test_a_file_cut_short_is_refused_or_changes_nothing(kind):
    path, read = kind
    whole, right = path.read_bytes(), read()
    for length in range(len(whole)):
        assert_whole_or_refused(path, whole[:length], read, right)


def test_every_flip_of_what_an_array_holds_is_refused(tmp_path):
    write, read = array(path := tmp_path / "array.npy")
    write()
    whole = path.read_bytes()
    end = whole.rindex(MARK)
    for at in range(end - 80, end):  # its numbers; of the header a blank may become a tab
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            path.write_bytes(bytes(flipped))
            with pytest.raises(UserError, match=r"array\.npy .*checksum"):
                read()


def test_numpy_reads_a_sealed_array(tmp_path):
    write, _ = array(path := tmp_path / "array.npy")
    write()
    np.testing.assert_array_equal(np.load(path), np.arange(40).reshape(5, 8))


def test_files_of_another_hand_have_no_checksum(tmp_path):
    from safetensors.numpy import save_file

    np.save(tmp_path / "array.npy", np.arange(3))
    assert load_array(tmp_path / "array.npy").tolist() == [0, 1, 2]
    save_file(
        {"layer.kernel": TREE["layer"]["kernel"], "layer.bias": TREE["layer"]["bias"]}, tmp_path / "t.safetensors"
    )
    assert load_tree(tmp_path / "t.safetensors", TREE)[1] == {}
