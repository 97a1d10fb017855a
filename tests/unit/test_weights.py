"""Published files of weights: what is read, what is refused, and in which words; the way back."""

import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ldmscale.errors import UserError
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.clip import CLIPConfig, TextTower
from ldmscale.models.unet import UNetConfig
from ldmscale.models.weights import from_tree, read_tensors, to_tree, torch_name, weights_file
from ldmscale.training import weights
from ldmscale.training.checkpoint import save_tree
from ldmscale.training.weights import check_weights, load_weights, parameter_shapes

torch = pytest.importorskip("torch")
TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2, np.float32)}


def equal(read, expected):
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(read[name], tensor)
        assert read[name].dtype == np.float32


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin", "w.pth", "w.ckpt"])
def test_files_of_every_kind_are_read(tmp_path, name):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(TENSORS, path)
    else:
        torch.save({k: torch.from_numpy(v) for k, v in TENSORS.items()}, path)
    equal(read_tensors(path), TENSORS)


@pytest.mark.parametrize("half", [np.float16, jnp.bfloat16])
def test_half_precision_becomes_float32(tmp_path, half):
    halved = {name: tensor.astype(half) for name, tensor in TENSORS.items()}
    save_file(halved, tmp_path / "w.safetensors")
    equal(read_tensors(tmp_path / "w.safetensors"), TENSORS)  # small whole numbers are exact
    torch.save({k: torch.from_numpy(v).to(torch.bfloat16) for k, v in TENSORS.items()}, tmp_path / "w.pt")
    equal(read_tensors(tmp_path / "w.pt"), TENSORS)


def test_a_state_dict_inside_a_checkpoint_is_found(tmp_path):
    torch.save({"epoch": 3, "state_dict": {k: torch.from_numpy(v) for k, v in TENSORS.items()}}, tmp_path / "w.ckpt")
    equal(read_tensors(tmp_path / "w.ckpt"), TENSORS)


def test_a_folders_safetensors_come_before_its_pickles(tmp_path):
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert weights_file(tmp_path).name == "pytorch_model.bin"
    save_file(TENSORS, tmp_path / "model.safetensors")
    equal(read_tensors(tmp_path), TENSORS)


def test_shards_are_put_together(tmp_path):
    for i, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, tmp_path / f"part-{i}.safetensors")
    index = {"weight_map": {name: f"part-{i}.safetensors" for i, name in enumerate(TENSORS)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    equal(read_tensors(tmp_path), TENSORS)


class Command:
    """What a hostile file runs when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch /tmp/ldmscale-was-here",)


def hostile(path):
    path.write_bytes(pickle.dumps({"a.weight": Command()}, protocol=2))


def truncated(path):
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-4])


def lying(path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)


def outside(path):
    path.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))


REFUSED = [
    ("gone.safetensors", lambda path: None, "does not exist"),
    ("w.h5", lambda path: path.write_bytes(b"x"), "its name must end in .safetensors"),
    ("w.safetensors", truncated, "not a whole safetensors file"),
    ("w.safetensors", lying, "not a whole safetensors file"),
    ("w.safetensors", lambda path: path.write_bytes(b""), "not a whole safetensors file"),
    ("w.pt", hostile, "files that would run code are refused"),
    ("w.bin", lambda path: path.write_bytes(b"not a file of PyTorch's"), "not a PyTorch file"),
    ("w.pt", lambda path: torch.save([torch.ones(2)], path), "no state dict"),
    ("w.pt", lambda path: torch.save({"lr": 0.1}, path), "no state dict"),
    ("folder", lambda path: path.mkdir(), "holds no weights"),
    ("model.safetensors.index.json", lambda path: path.write_text("[]"), "no index of shards"),
    ("model.safetensors.index.json", outside, "must lie beside their index"),
]


@pytest.mark.parametrize(("name", "make", "said"), REFUSED, ids=[said for *_, said in REFUSED])
def test_what_is_no_file_of_weights_is_refused_in_one_sentence(tmp_path, name, make, said):
    path = tmp_path / name
    make(path)
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    assert said in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)
    assert not os.path.exists("/tmp/ldmscale-was-here")


def test_names_follow_the_lists_and_leaves():
    def name(dotted):
        return torch_name(dotted, ("blocks", "net"))

    assert name("blocks_1.norm1.scale") == "blocks.1.norm1.weight"
    assert name("ff.net_0.proj.kernel") == "ff.net.0.proj.weight"
    assert name("linear_1.bias") == "linear_1.bias"
    assert name("token.embedding") == "token.weight"
    assert name("cls_token") == "cls_token"


LIKE = {
    "conv": {"kernel": np.zeros((3, 2, 4, 5), np.float32)},
    "dense": {"kernel": np.zeros((4, 5), np.float32), "bias": np.zeros(5, np.float32)},
    "temperature": np.zeros((), np.float32),
}


def test_layouts_go_there_and_back():
    draw = np.random.default_rng(0)
    tree = jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32), LIKE)
    stored = from_tree(tree, torch_name)
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        "conv.weight": (5, 4, 3, 2), "dense.weight": (5, 4), "dense.bias": (5,), "temperature": (),
    }  # fmt: skip
    assert stored["conv.weight"][1, 2, 0, 1] == tree["conv"]["kernel"][0, 1, 2, 1]
    back = to_tree(stored, LIKE, torch_name, "w")
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_a_convolution_that_tiles_its_input_is_a_linear_layer_of_the_patch():
    kernel = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)  # OIHW
    like = {"kernel": np.zeros((2 * 2 * 3, 5), np.float32)}
    ours = to_tree({"weight": kernel}, like, torch_name, "w")["kernel"]
    patch = np.random.default_rng(1).normal(size=(2, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(patch.reshape(-1) @ ours, np.einsum("oihw,hwi->o", kernel, patch), rtol=1e-5)


CONFIGS = [
    UNetConfig(8, (1, 2), 1, (True, False), heads=2, norm_groups=2, context_width=16),
    AutoencoderConfig(8, (1, 1), 1, 4, 4),
    CLIPConfig(16, 8, 16, 1, 16, 1, vocab_size=40, context_length=9, embed_dim=12, heads=2),
    TextTower(width=16, depth=1, heads=2, vocab_size=40, context_length=9),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_networks_weights_are_read_from_our_own_checkpoints(tmp_path, config):
    shapes = parameter_shapes(config)
    tree = jax.tree.map(lambda s: np.random.default_rng(0).normal(size=s.shape).astype(np.float32), shapes)
    save_tree(tmp_path / "step-1.safetensors", tree, step=1)
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "step-1.safetensors", config), tree)
    assert check_weights(tmp_path / "step-1.safetensors", config) == tmp_path / "step-1.safetensors"
    for other in CONFIGS:
        if type(other) is not type(config) and not isinstance(other, TextTower):
            with pytest.raises(UserError, match="another network"):
                check_weights(tmp_path / "step-1.safetensors", other)


def test_shapes_are_traced_once_and_again_where_what_was_kept_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    traced = []
    monkeypatch.setattr(
        weights, "_traced", lambda config, trace=weights._traced: traced.append(config) or trace(config)
    )

    def another_process():
        weights._described.cache_clear()
        return parameter_shapes(CONFIGS[0])

    first = another_process()
    (kept,) = (tmp_path / "cache").iterdir()
    assert another_process() == first and len(traced) == 1
    whole = kept.read_text()
    for spoilt in (whole[:-9], whole.replace("conv_in", "conv_up"), "{}", ""):
        kept.write_text(spoilt)
        assert another_process() == first
    assert len(traced) == 5 and kept.read_text() == whole
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/proc/no/folder")
    assert another_process() == first
    monkeypatch.setattr(weights, "version", lambda package: "another")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    assert another_process() == first and len(traced) == 7
    weights._described.cache_clear()
