"""Files of weights and tokenizers that lie, are damaged or hostile: refused in a sentence, and nothing of them runs."""

import collections
import copy
import io
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from ldmscale.cli.main import main
from ldmscale.data.tokenizer import ALPHABET, END, MIN_VOCAB_SIZE, START, WORD_END, load_tokenizer, train_tokenizer
from ldmscale.errors import UserError
from ldmscale.metrics.inception import inception_network
from ldmscale.models import autoencoder_weights, clip_weights, unet_weights
from ldmscale.models.adapter import adapter_parameters
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.clip import CLIPConfig, TextTower
from ldmscale.models.inception_weights import load_inception
from ldmscale.models.lpips_weights import load_lpips
from ldmscale.models.published_config import PublishedConfig
from ldmscale.models.torchscript import check_programs, is_torchscript, read_archive
from ldmscale.models.unet import UNetConfig
from ldmscale.models.vit import ViT, ViTConfig
from ldmscale.models.vit_weights import load_dinov2, load_vit
from ldmscale.models.vit_weights import published_name as vit_name
from ldmscale.models.weights import PICKLED, from_tree, read_tensors
from ldmscale.training.checkpoint import load_tree, read_metadata, save_tree
from ldmscale.training.weights import load_weights, parameter_shapes

torch = pytest.importorskip("torch")
EXAMPLES = int(os.environ.get("LDMSCALE_FUZZ", 40))
FUZZ = settings(max_examples=EXAMPLES, derandomize=EXAMPLES == 40, database=None)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

UNET = UNetConfig(8, (1, 2), 1, (True, False), heads=2, norm_groups=2, context_width=16)
VAE = AutoencoderConfig(8, (1, 1), 1, 4, 4)
CLIP = CLIPConfig(16, 8, 16, 1, 16, 1, vocab_size=40, context_length=9, embed_dim=12, heads=2)
TEXT = TextTower(width=16, depth=1, heads=2, vocab_size=40, context_length=9)
VIT = ViTConfig(224, 112, 64, 1, 1, layer_scale=True)
SHAPES = {config: parameter_shapes(config) for config in (UNET, VAE, CLIP, TEXT)}
ADAPTER = jax.eval_shape(adapter_parameters, SHAPES[UNET])

LOADERS = {
    "unet": lambda path: load_weights(path, UNET),
    "adapter": lambda path: unet_weights.load_adapter(path, ADAPTER),
    "autoencoder": lambda path: load_weights(path, VAE),
    "clip": lambda path: load_weights(path, CLIP),
    "text": lambda path: load_weights(path, TEXT),
    "dinov2": load_dinov2,
    "dino": lambda path: load_vit(path, VIT),
}
OTHERS = {
    "lpips": lambda path: load_lpips(path, path, "alex"),
    "inception": load_inception,
    "checkpoint": lambda path: load_tree(path, SHAPES[UNET]),
}


def filled(shapes):
    return jax.tree.map(lambda s: np.random.default_rng(0).normal(size=s.shape).astype(np.float32), shapes)


def vit_shapes():
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    return jax.eval_shape(ViT(VIT).init, jax.random.key(0), image)["params"]


VIT_SHAPES = vit_shapes()
PUBLISHED = {
    "unet": from_tree(filled(SHAPES[UNET]), unet_weights.published_name),
    "adapter": unet_weights.adapter_tensors(filled(ADAPTER)),
    "autoencoder": from_tree(filled(SHAPES[VAE]), autoencoder_weights.published_name),
    "clip": from_tree(filled(SHAPES[CLIP]), clip_weights.published_name),
    "text": clip_weights.transformers_tensors(filled(SHAPES[TEXT])),
    "dinov2": from_tree(filled(VIT_SHAPES), vit_name),
    "dino": from_tree(filled(VIT_SHAPES), vit_name),
}
for network in ("dinov2", "dino"):  # ours is linear, theirs a convolution
    patches = PUBLISHED[network]["patch_embed.proj.weight"]
    PUBLISHED[network]["patch_embed.proj.weight"] = patches.reshape(64, 112, 112, 3).transpose(0, 3, 1, 2).copy()


@pytest.fixture(scope="module", autouse=True)
def known_shapes():
    """What takes most of the time of a refusal, tracing the network, is done once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ldmscale.training.weights.parameter_shapes", lambda config: SHAPES.get(config) or parameter_shapes(config)
        )
        known = {ViT(VIT): {"params": VIT_SHAPES}}
        traced = SimpleNamespace(
            eval_shape=lambda init, *inputs: known.get(init.__self__) or jax.eval_shape(init, *inputs),
            ShapeDtypeStruct=jax.ShapeDtypeStruct,
            random=jax.random,
        )
        patch.setattr("ldmscale.models.vit_weights.jax", traced)
        yield


def refused(make, *said):
    with warnings.catch_warnings(), pytest.raises(UserError) as error:
        warnings.simplefilter("ignore")
        make()
    assert "\n" not in str(error.value) and all(text in str(error.value) for text in said), str(error.value)


def allowed(make):
    """``make()``, or None where it refuses in one line; anything else fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return make()
        except UserError as error:
            assert "\n" not in str(error), str(error)


# ---------------------------------------------------------------- pickles


class Command:
    """Writes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def pickles(mark):
    """Files that run a command when they are unpickled, as different readers take them."""
    hostile = {"conv_in.weight": Command(mark)}
    for protocol in (0, 2, 5):
        yield pickle.dumps(hostile, protocol)
    for old in (False, True):
        file = io.BytesIO()
        torch.save(hostile, file, _use_new_zipfile_serialization=not old)
        yield file.getvalue()
    file = io.BytesIO()  # a state dict beside the command
    torch.save({"state_dict": {"a": torch.ones(2)}, "more": Command(mark)}, file)
    yield file.getvalue()
    file = io.BytesIO()  # TorchScript by its table of constants
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("constants", "data"):
            archive.writestr(f"inception/{name}.pkl", pickle.dumps(Command(mark), 2))
    yield file.getvalue()


def test_the_planted_pickle_does_run_when_it_is_unpickled(tmp_path):
    for raw in list(pickles(tmp_path / "ran"))[:3]:
        pickle.loads(raw)
        (tmp_path / "ran").unlink()


@pytest.mark.parametrize("name", [*LOADERS, *OTHERS])
def test_no_pickle_is_unpickled_wherever_weights_are_taken(tmp_path, name):
    load, mark = (LOADERS | OTHERS)[name], tmp_path / "ran"
    for number, raw in enumerate(pickles(mark)):
        for suffix in (PICKLED[number % len(PICKLED)], ".safetensors"):
            path = tmp_path / f"{number}{suffix}"
            path.write_bytes(raw)
            refused(lambda path=path: load(path), path.name)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(raw)
    refused(lambda: load(folder))
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.bin").symlink_to("/dev/zero")
    for odd in ("pipe.pt", "zero.bin"):
        if name != "checkpoint":  # whose file this package has written
            refused(lambda odd=odd: load(tmp_path / odd), odd)
    assert not mark.exists()


def test_no_pickle_is_unpickled_where_a_tokenizer_or_inception_is_taken(tmp_path):
    mark = tmp_path / "ran"
    for raw in pickles(mark):
        for name in ("tokenizer.json", "vocab.json", "inception-2015-12-05.pt"):
            (tmp_path / name).write_bytes(raw)
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        refused(lambda: load_tokenizer(tmp_path))
        refused(lambda: load_tokenizer(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer.json").unlink()
        refused(lambda: load_tokenizer(tmp_path))
    assert not mark.exists()


def test_tensors_of_pytorch_that_are_no_plain_arrays(tmp_path):
    ones = torch.ones(2, 3)
    odd = {"huge": ones[:1, :1].expand(1 << 20, 1 << 20), "sparse": ones.to_sparse(), "meta": ones.to("meta"),
           "quantised": torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)}  # fmt: skip
    for name, tensor in odd.items():
        torch.save({"a.weight": tensor}, tmp_path / "w.pt")
        refused(lambda: read_tensors(tmp_path / "w.pt"), "w.pt", "plain array" if name != "huge" else "its data")
    torch.save({1: ones}, tmp_path / "w.pt")
    refused(lambda: read_tensors(tmp_path / "w.pt"), "no state dict")
    torch.save(collections.OrderedDict(a=torch.nn.Parameter(ones), b=ones.T, c=ones[:, 1:]), tmp_path / "w.pt")
    found = read_tensors(tmp_path / "w.pt")  # parameters, turned and cut ones are common
    assert {name: array.shape for name, array in found.items()} == {"a": (2, 3), "b": (3, 2), "c": (2, 2)}


# ---------------------------------------------------------------- safetensors


def written(path, header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes((size % (1 << 64)).to_bytes(8, "little") + text + body)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "past the end": ({"a": entry(offsets=(0, 1 << 40))}, bytes(8)),
    "backwards": ({"a": entry(offsets=(8, 0))}, bytes(8)),
    "negative": ({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "overlapping": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "same place": ({"a": entry(), "b": entry()}, bytes(8)),
    "hole": ({"a": entry(), "b": entry(offsets=(16, 24))}, bytes(24)),
    "trailing bytes": ({"a": entry()}, bytes(9)),
    "missing bytes": ({"a": entry()}, bytes(7)),
    "other size": ({"a": entry(shape=(3,))}, bytes(8)),
    "overflow": ({"a": entry(shape=(1 << 32, 1 << 32, 4))}, bytes(8)),
    "huge and nothing": ({"a": entry(shape=(1 << 62, 0), offsets=(0, 0))}, b""),
    "fraction": ({"a": entry(shape=(1.5,))}, bytes(8)),
    "no type": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "unknown type": ({"a": entry("F31")}, bytes(8)),
    "other type": ({"a": entry("F64")}, bytes(8)),
    "twice": (b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
    "list": ([1], b""),
    "not JSON": (b"{", b""),
    "not text": (b"\xff\xfe", b""),
    "deep": (b'{"a":' * 90_000 + b"1" + b"}" * 90_000, b""),
    "deep metadata": ({"__metadata__": {"ldmscale": "[" * 100_000}, "kernel": entry()}, bytes(8)),
    "metadata of another type": ({"__metadata__": {"ldmscale": "[]"}, "kernel": entry()}, bytes(8)),
    "checksums of another type": ({"__metadata__": {"ldmscale": '{"crc32": 5}'}, "kernel": entry()}, bytes(8)),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(tmp_path, lie):
    header, body = LIES[lie]
    path = written(tmp_path / "w.safetensors", header, body)
    found = allowed(lambda: read_tensors(path))
    assert found is None or (lie in ("huge and nothing", "twice") or "meta" in lie or "checks" in lie)
    for name in ("unet", "text", "dinov2", "checkpoint"):
        refused(lambda name=name: (LOADERS | OTHERS)[name](path), "w.safetensors")
    allowed(lambda: read_metadata(path))


@pytest.mark.parametrize("length", [0, 1, 7, 10**8 + 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_lengths_of_headers_that_lie(tmp_path, length):
    refused(lambda: read_tensors(written(tmp_path / "w.safetensors", {"a": entry()}, bytes(8), length)), "not a whole")


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8",
                                   "BOOL", "F8_E5M2", "F8_E4M3", "F8_E8M0", "C64", "F4"])  # fmt: skip
def test_numbers_of_every_type_are_read_or_refused(tmp_path, dtype):
    bits = {"BOOL": 8, "BF16": 16}.get(dtype) or int(dtype.lstrip("FIUC").partition("_")[0])
    stored = PUBLISHED["unet"]
    name = "conv_in.bias"
    size = stored[name].size * bits // 8
    raw = save({key: array for key, array in stored.items() if key != name})
    length = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    header[name] = entry(dtype, stored[name].shape, (len(body), len(body) + size))
    path = written(tmp_path / "w.safetensors", header, body + bytes(size))
    if allowed(lambda: load_weights(path, UNET)) is not None:
        assert dtype in ("F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3")
    assert dtype not in ("F32", "F16", "BF16") or load_weights(path, UNET)
    # The same as one of our own checkpoints.
    written(tmp_path / "own.safetensors", {"kernel": entry(dtype, (2,), (0, 2 * bits // 8))}, bytes(2 * bits // 8))
    like = {"kernel": np.zeros(2, np.float32)}
    assert dtype == "F32" or allowed(lambda: load_tree(tmp_path / "own.safetensors", like)) is None


ODD = st.sampled_from(["drop", "rename", "flat", "scalar", "empty", "turn", "more", "nan", "inf", "int", "half", "huge",
                       "cut"])  # fmt: skip


def mutated(stored, name, how):
    stored = dict(stored)
    array = stored[name]
    if how in ("drop", "rename", "huge"):
        del stored[name]
        if how == "rename":
            stored[f"{name}x"] = array
        if how == "huge":
            stored[f"blocks.{'9' * 9}.x"] = stored[f"text_model.encoder.layers.{'9' * 5000}.x"] = array
            stored[f"transformer.resblocks.{'9' * 50}.attn.in_proj_weight"] = np.ones((), np.float32)
            stored["ln_final.weight"] = array
        return stored
    array = np.atleast_1d(array) if how in ("scalar", "empty") else array
    odd = array.copy()
    odd.reshape(-1)[:1] = {"nan": np.nan, "inf": np.inf}.get(how, 1)
    flat = array.reshape(-1)
    changes = {
        "flat": flat,
        "scalar": flat[:1].reshape(()),
        "empty": flat[:0].reshape(0, *array.shape[1:]),
        "turn": array.T,
        "more": array[None],
        "int": np.ones(array.shape, np.int32),
        "half": array.astype(np.float16),
        "cut": array[..., :-1] if array.ndim else array,
        "nan": odd,
        "inf": odd,
    }
    stored[name] = np.asarray(changes[how], order="C")
    return stored


@FUZZ
@given(data=st.data(), network=st.sampled_from(sorted(LOADERS)))
def test_networks_that_do_not_quite_fit(tmp_path_factory, data, network):
    stored = PUBLISHED[network]
    for _ in range(data.draw(st.integers(1, 3))):
        stored = mutated(stored, data.draw(st.sampled_from(sorted(stored))), data.draw(ODD))
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    save_file(stored, path)
    tree = allowed(lambda: LOADERS[network](path))
    if tree is not None:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray))


@pytest.mark.parametrize("network", sorted(LOADERS))
def test_each_tensor_of_each_kind_of_network_mistaken_in_each_way(tmp_path, network):
    path = tmp_path / "w.safetensors"
    save_file(PUBLISHED[network], path)
    assert LOADERS[network](path)
    names = sorted(PUBLISHED[network], key=lambda name: (PUBLISHED[network][name].ndim, name))
    for name in {names[0], names[-1], names[len(names) // 2], *[n for n in names if "pos" in n or "cls" in n]}:
        for how in ("drop", "rename", "scalar", "empty", "nan", "inf", "int", "huge"):
            save_file(mutated(PUBLISHED[network], name, how), path)
            array = PUBLISHED[network][name]
            if "controlnet_cond" not in name and not (how == "scalar" and array.ndim == 0):
                refused(lambda: LOADERS[network](path), "w.safetensors")


@FUZZ
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4), cut=st.floats(0.1, 2))
def test_a_safetensors_file_with_flipped_bytes(tmp_path_factory, edits, cut):
    raw = bytearray(save({"kernel": np.ones((2, 3), np.float32), "a.weight": np.ones(4, np.float32)}))
    for place, value in edits:
        raw[int(place**2 * (len(raw) - 1))] = value
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(bytes(raw[: int(cut * len(raw))]))
    allowed(lambda: read_tensors(path))
    allowed(lambda: load_tree(path, {"kernel": np.ones((2, 3), np.float32)}))


INDICES = ["", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": null}}',
           '{"weight_map": {"a": ["x"]}}', '{"weight_map": {"a": ""}}', '{"weight_map": {"a": "."}}',
           '{"weight_map": {"a": ".."}}', '{"weight_map": {"a": "../x.safetensors"}}',
           '{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": {"a": "gone.safetensors"}}',
           '{"weight_map": {"a": "x\\u0000.safetensors"}}', '{"weight_map": {"a": "model.safetensors.index.json"}}',
           '{"weight_map": {"a": "sub"}}', '{"weight_map": {"a": "model.safetensors.index.json", "b": 1}}',
           "[" * 100_000, '{"weight_map": ' * 100_000, "\ufeff{}"]  # fmt: skip


@pytest.mark.parametrize("content", INDICES, ids=lambda content: content[:45])
def test_indices_of_shards_that_name_something_else(tmp_path, content):
    (tmp_path / "sub").mkdir()
    save_file(PUBLISHED["unet"], tmp_path.parent / "x.safetensors")
    save_file(PUBLISHED["unet"], tmp_path / "sub" / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    if content != "{}":
        refused(lambda: load_weights(tmp_path, UNET))
    else:
        refused(lambda: load_weights(tmp_path, UNET), "weight_map")


# ---------------------------------------------------------------- TorchScript


class Waking(torch.nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self, mark: str):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.mark = mark

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.mark, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
        self.weight, self.mark, self.training = state[0], state[1], state[2]
        torch.save(self.weight, self.mark)

    def forward(self, x):
        return x


class Working(torch.nn.Module):
    """Writes a file when it is called; otherwise a network as clean-fid's wrapper wants it."""

    def __init__(self, mark: str, width: int = 2048, fill: float = 1.0):
        super().__init__()
        self.mark, self.width, self.fill = mark, width, fill

    def forward(self, x):
        if self.mark:
            torch.save(x, self.mark)
        return torch.full([x.shape[0], self.width], self.fill)


class Reading(torch.nn.Module):
    """Reads, and by the way lengthens, a file."""

    def forward(self, x):
        return torch.from_file("README.md", False, 8)


def archive(path, layers):
    root = torch.nn.Module()
    root.layers = torch.jit.script(layers)
    torch.jit.script(root).save(str(path))
    return path


def test_programs_that_reach_files_are_refused_before_pytorch_sees_them(tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "inception-2015-12-05.pt"
    archive(tmp_path / "waking.pt", Waking(str(mark)))
    torch.jit.load(tmp_path / "waking.pt")
    assert mark.exists()  # so it is worth the trouble
    mark.unlink()
    for layers, said in ((Waking(str(mark)), "__setstate__"), (Working(str(mark)), "save"), (Reading(), "from_file")):
        inception_network.cache_clear()
        archive(path, layers)
        refused(lambda said=said: inception_network(path), path.name, "reaches beyond tensors")
        refused(lambda: check_programs(path), path.name)
        refused(lambda: load_inception(path), path.name)
    assert not mark.exists()


@pytest.mark.parametrize(("layers", "said"), [
    (Working("", width=1000), "not the TorchScript network"), (Working("", fill=float("nan")), "not finite")
])  # fmt: skip
def test_networks_of_another_kind_are_refused_when_they_are_read(tmp_path, layers, said):
    inception_network.cache_clear()
    # A network that never writes has no `save` in it: one is made of the plainer class.
    plain = torch.nn.Sequential(torch.nn.AvgPool2d(59, 60), torch.nn.Flatten(), torch.nn.Linear(75, layers.width))
    torch.nn.init.constant_(plain[2].weight, layers.fill)
    path = archive(tmp_path / "inception-2015-12-05.pt", plain)
    refused(lambda: inception_network(path), said)


def test_an_archives_tensors_are_read_as_data(tmp_path):
    class Block(torch.nn.Module):
        sizes: list[int]

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 3, 3)
            self.register_buffer("mean", torch.arange(6.0).reshape(2, 3).T)
            self.register_buffer("short", torch.ones(2, dtype=torch.float16))
            self.sizes, self.loose = [1, 2], torch.ones(4)

        def forward(self, x):
            return self.conv(x) + self.loose.sum() + self.sizes[0] + self.mean.sum() + self.short.sum()

    path = archive(tmp_path / "a.pt", Block())
    assert is_torchscript(path) and not check_programs(path)
    want = {name: tensor.detach().numpy() for name, tensor in torch.jit.load(path).state_dict().items()}
    found = read_archive(path)
    assert found.keys() == want.keys() == {"layers.conv.weight", "layers.conv.bias", "layers.mean", "layers.short"}
    for name, array in want.items():
        np.testing.assert_array_equal(found[name], array)


@FUZZ
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6), cut=st.floats(0.3, 2),
       opcodes=st.none() | st.binary(max_size=60))  # fmt: skip
def test_damaged_archives(tmp_path_factory, edits, cut, opcodes):
    folder = tmp_path_factory.getbasetemp()
    if not (folder / "sound.pt").exists():
        archive(folder / "sound.pt", torch.nn.Linear(2, 3))
    raw = bytearray((folder / "sound.pt").read_bytes())
    for place, value in edits:
        raw[int(place * (len(raw) - 1))] = value
    path = folder / "damaged.pt"
    path.write_bytes(bytes(raw[: int(cut * len(raw))]))
    if opcodes is not None:
        with zipfile.ZipFile(folder / "sound.pt") as sound, zipfile.ZipFile(path, "w") as other:
            for name in sound.namelist():
                other.writestr(name, opcodes + b"." if name.endswith("/data.pkl") else sound.read(name))
    allowed(lambda: read_archive(path))
    allowed(lambda: check_programs(path))


# ---------------------------------------------------------------- tokenizers and what lies beside weights


def published():
    """The files of a tokenizer in CLIP's form."""
    symbols = [*ALPHABET, *[symbol + WORD_END for symbol in ALPHABET], "ab" + WORD_END, START, END]
    vocab = {symbol: number for number, symbol in enumerate(symbols)}
    return vocab, [("a", "b" + WORD_END)]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """The JSON of a trained tokenizer and of a published one."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(["a red circle", "a blue star"], MIN_VOCAB_SIZE + 5, folder / "bpe.json")
    vocab, merges = published()
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "end_of_word_suffix": WORD_END, "unk_token": END}
    (folder / "clip.json").write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    for name in ("bpe.json", "clip.json"):
        assert load_tokenizer(folder / name).encode(["a red ab"], 9).max() < MIN_VOCAB_SIZE * 2 + 10
    return {name: (folder / name).read_text() for name in ("bpe.json", "clip.json")}


VALUES = st.sampled_from(
    [None, True, -1, 0, 1.5, 2**31, 2**40, "", "x", [], {}, [["a", "b"]], {"a": 1}, {"a": 0, "b": 0}]
)


@FUZZ
@given(data=st.data(), name=st.sampled_from(["bpe.json", "clip.json"]))
def test_damaged_tokenizers(tokenizers, tmp_path_factory, data, name):
    content = json.loads(tokenizers[name])
    for _ in range(data.draw(st.integers(1, 2))):
        place = content
        while True:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            deeper = place[key]
            if not isinstance(deeper, (dict, list)) or not deeper or data.draw(st.integers(0, 3)) == 0:
                break
            place = deeper
        if data.draw(st.booleans()):
            place[key] = copy.deepcopy(data.draw(VALUES))
        else:
            del place[key]
        if not content:
            break
    text = json.dumps(content)
    if data.draw(st.integers(0, 4)) == 0:
        text = text[: data.draw(st.integers(0, len(text)))]
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_text(text)
    tokenizer = allowed(lambda: load_tokenizer(path))
    if tokenizer:
        ids = tokenizer.encode(["a red circle ab \u00fc", ""], 9)
        assert ids.shape == (2, 9) and ids.min() >= 0 and ids.max() == tokenizer.end_id < tokenizer.vocab_size


def test_tokenizer_files_of_other_kinds(tmp_path):
    vocab, merges = published()
    text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text(text)
    assert load_tokenizer(tmp_path).vocab_size == len(vocab)
    bad = [(b"", text), (b"{", text), (b"\xff", text), (b"[]", text), (b'{"a": "b"}', text), (b'{"a": -1}', text),
           (json.dumps(vocab | {"a": 10**6}).encode(), text), (json.dumps(vocab | {"a": 1}).encode(), text),
           (b"[" * 100_000, text), (json.dumps(vocab).encode(), "a\n"), (json.dumps(vocab).encode(), "q qq\n"),
           (b"\x0a\x0c<unk>\x15\0\0\0\0", text)]  # fmt: skip
    for content, merging in bad:
        (tmp_path / "vocab.json").write_bytes(content)
        (tmp_path / "merges.txt").write_text(merging)
        refused(lambda: load_tokenizer(tmp_path), str(tmp_path))
    (tmp_path / "spiece.model").write_bytes(b"\x0a\x0c<unk>")
    refused(lambda: load_tokenizer(tmp_path / "spiece.model"), "spiece.model")
    os.mkfifo(tmp_path / "pipe.json")
    refused(lambda: load_tokenizer(tmp_path / "pipe.json"), "no regular file")


@pytest.mark.parametrize("content", ["", "[", "[]", "5", "[" * 100_000, '{"_class_name": 5}', '{"_class_name": NaN}'])
def test_configs_beside_weights_that_are_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    refused(lambda: PublishedConfig(tmp_path / "config.json", {}, {"_class_name": "UNet"}), "config.json")


def test_sample_refuses_a_hostile_folder_in_one_sentence(tmp_path, capsys):
    mark = tmp_path / "ran"
    folder = tmp_path / "pipeline"
    parts = {"unet": unet_weights.diffusers_config(UNET, 4), "vae": autoencoder_weights.diffusers_config(VAE, 4, 1.0),
             "text_encoder": clip_weights.transformers_config(TextTower(
                 width=16, depth=1, heads=2, vocab_size=len(published()[0]), context_length=9), 0),
             "tokenizer": {}, "scheduler": {}}  # fmt: skip
    for part, config in parts.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        (folder / part / "diffusion_pytorch_model.bin").write_bytes(list(pickles(mark))[3])
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(published()[0]))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    asked = ["sample", "--pipeline", str(folder), "--prompt", "x", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(asked) == 1
    said = capsys.readouterr().err
    assert "diffusion_pytorch_model.bin is not a PyTorch file of tensors alone" in said and "Traceback" not in said
    assert not mark.exists()


def test_our_own_checkpoints_are_read_still(tmp_path):
    tree = filled(SHAPES[UNET])
    save_tree(Path(tmp_path / "own.safetensors"), tree, step=3)
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "own.safetensors", UNET), tree)
