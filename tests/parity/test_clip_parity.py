"""CLIP, its importers, preprocessing and tokenizer against transformers' and OpenCLIP's own, with random weights."""

import dataclasses
import json
import random

import numpy as np
import pytest
from peers import error, nchw, peer, randomise, shapes, torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import ldmscale  # noqa: F401  before JAX

import jax  # isort: skip

from ldmscale.data.scenes import SceneSource, captions
from ldmscale.data.tokenizer import (
    ALPHABET,
    END,
    PUBLISHED_PATTERN,
    START,
    load_tokenizer,
    save_for_transformers,
    train_tokenizer,
)
from ldmscale.models.clip import (
    CLIP,
    PRESETS,
    TEXT_ENCODERS,
    CLIPConfig,
    TextModel,
    TextTower,
    preprocess,
)
from ldmscale.models.clip_weights import (
    _from_openai,
    load_clip,
    load_text_model,
    published_name,
    transformers_config,
    transformers_tensors,
)


def assert_close(ours, theirs) -> None:
    """Closer than the other networks must be: what tells the exact GELU from its approximation is small."""
    assert error(ours, theirs) <= 1e-5


@pytest.fixture(scope="module")
def transformers():
    return peer("transformers")


@pytest.fixture(scope="module")
def open_clip():
    return peer("open_clip")


def clip_shapes(config: CLIPConfig):
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), np.float32)
    return shapes(CLIP(config), images, jax.ShapeDtypeStruct((1, config.context_length), np.int32))


def text_shapes(tower: TextTower):
    return shapes(TextModel(tower), jax.ShapeDtypeStruct((1, tower.context_length), np.int32))


def some_images(config: CLIPConfig, count=3):
    size = (count, config.image_size, config.image_size, 3)
    return np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)


def some_tokens(tower: TextTower, lengths=(3, 7, 10)):
    rng = np.random.default_rng(1)
    tokens = np.zeros((len(lengths), tower.context_length), np.int32)
    for row, words in zip(tokens, lengths, strict=True):
        row[: words + 2] = [tower.vocab_size - 2, *rng.integers(1, tower.vocab_size - 2, words), tower.end_token]
    return tokens


SMALL = {"image_size": 24, "patch": 8, "vocab_size": 60, "context_length": 12, "embed_dim": 20}
CONFIGS = {
    "embedded": CLIPConfig(image_width=32, image_depth=2, text_width=48, text_depth=3, heads=4, **SMALL),
    "general": CLIPConfig(
        image_width=48, image_depth=3, text_width=32, text_depth=2, image_heads=3, text_heads=4, image_mlp=100,
        text_mlp=56, activation="gelu", **SMALL,
    ),
}  # fmt: skip


def transformers_kwargs(tower) -> dict:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": tower.activation,
    }


def text_kwargs(tower: TextTower) -> dict:
    ids = {"pad_token_id": 0, "bos_token_id": tower.vocab_size - 2, "eos_token_id": tower.end_token}
    sizes = {"vocab_size": tower.vocab_size, "max_position_embeddings": tower.context_length, "projection_dim": 20}
    return transformers_kwargs(tower) | ids | sizes


def make_transformers_clip(transformers, config: CLIPConfig):
    vision = transformers_kwargs(config.image) | {"image_size": config.image_size, "patch_size": config.patch}
    peer_config = transformers.CLIPConfig(
        text_config=text_kwargs(config.text), vision_config=vision, projection_dim=config.embed_dim
    )
    model = transformers.CLIPModel(peer_config).eval()
    randomise(model, seed=3)
    return model


def make_transformers_text(transformers, tower: TextTower):
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_kwargs(tower))).eval()
    randomise(model, seed=4)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_clip_equals_transformers(name, transformers, tmp_path):
    config = CONFIGS[name]
    theirs = make_transformers_clip(transformers, config)
    theirs.save_pretrained(tmp_path)
    params = load_clip(tmp_path, clip_shapes(config))
    images, tokens = some_images(config), some_tokens(config.text)
    features, image_embedding, states, text_embedding = jax.jit(
        lambda p: CLIP(config).apply(p, method=lambda net: (*net.encode_image(images), *net.encode_text(tokens)))
    )({"params": params})
    with torch.no_grad():
        ids = torch.from_numpy(tokens).long()
        out = theirs(input_ids=ids, pixel_values=nchw(images), attention_mask=torch.ones_like(ids))
        assert_close(features, theirs.vision_model(nchw(images)).pooler_output)
        assert_close(image_embedding, out.image_embeds)
        assert_close(states, out.text_model_output.last_hidden_state)
        assert_close(text_embedding, out.text_embeds)


TEXT = TextTower(width=48, depth=4, heads=3, mlp=104, activation="gelu", vocab_size=60, context_length=12)


def write_text_layout(transformers, layout: str, model, folder):
    """The weights of ``model`` (a CLIPTextModel) as they are published: -> the file or folder."""
    bare = model.state_dict()
    stored = {f"text_model.{name}": tensor for name, tensor in bare.items()}
    if layout == "saved by transformers":
        model.save_pretrained(folder)
        return folder
    if layout == "bare names":
        stored = bare
    if layout == "stable diffusion":  # with the buffer of older versions, in half precision
        stored = {name: tensor.half() for name, tensor in stored.items()}
        stored["text_model.embeddings.position_ids"] = torch.arange(TEXT.context_length)[None]
    if layout == "pickled":
        torch.save(stored, folder / "pytorch_model.bin")
        return folder / "pytorch_model.bin"
    if layout == "with projection":
        whole = transformers.CLIPTextModelWithProjection(model.config)
        whole.text_model.load_state_dict(bare)
        whole.save_pretrained(folder)
        return folder
    if layout == "whole CLIP":
        config = CLIPConfig(**{**SMALL, "image_width": 32, "image_depth": 1, "text_width": 48, "text_depth": 4},
                            image_heads=2, text_heads=3, text_mlp=104, activation="gelu")  # fmt: skip
        whole = make_transformers_clip(transformers, config)
        whole.text_model.load_state_dict(bare)
        whole.save_pretrained(folder)
        return folder
    save_file(stored, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("layout", "depth"),
    [
        ("saved by transformers", 4),
        ("saved by transformers", 3),
        ("bare names", 3),
        ("stable diffusion", 3),
        ("pickled", 3),
        ("with projection", 3),
        ("whole CLIP", 3),
    ],
)
def test_text_encoder_equals_transformers(layout, depth, transformers, tmp_path):
    theirs = make_transformers_text(transformers, TEXT)
    if layout == "stable diffusion":
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.copy_(parameter.half().float())
    path = write_text_layout(transformers, layout, theirs, tmp_path)
    tower = dataclasses.replace(TEXT, depth=depth)
    params = load_text_model(path, text_shapes(tower))
    tokens = some_tokens(tower)
    ours = jax.jit(TextModel(tower).apply)({"params": params}, tokens)
    with torch.no_grad():
        out = theirs(torch.from_numpy(tokens).long(), output_hidden_states=True)
        expected = theirs.final_layer_norm(out.hidden_states[-2]) if depth == 3 else out.last_hidden_state
    assert_close(ours, expected)


def test_exported_text_encoder_is_transformers_own(transformers, tmp_path):
    tower = TextTower(width=24, depth=2, heads=2, vocab_size=60, context_length=12)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), text_shapes(tower))
    save_file({k: torch.from_numpy(v) for k, v in transformers_tensors(params).items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(transformers_config(tower, pad_id=0)))
    model, info = transformers.CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokens = some_tokens(tower)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(tokens).long())
    ours = jax.jit(TextModel(tower).apply)({"params": params}, tokens)
    assert_close(ours, theirs.last_hidden_state)
    ends = (tokens == tower.end_token).argmax(1)
    assert_close(np.asarray(ours)[np.arange(3), ends], theirs.pooler_output)


def make_open_clip(open_clip, config: CLIPConfig):
    vision = {
        "image_size": config.image_size,
        "patch_size": config.patch,
        "width": config.image_width,
        "layers": config.image_depth,
        "head_width": config.image_width // config.image.heads,
        "mlp_ratio": config.image.mlp_width / config.image_width,
    }
    text = {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "width": config.text_width,
        "layers": config.text_depth,
        "heads": config.text.heads,
        "mlp_ratio": config.text.mlp_width / config.text_width,
    }
    model = open_clip.CLIP(config.embed_dim, vision, text, quick_gelu=config.activation == "quick_gelu").eval()
    mask = model.attn_mask.clone()  # a buffer, so it would be random too
    randomise(model, seed=5)
    model.attn_mask.copy_(mask)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_clip_equals_open_clip(name, open_clip, tmp_path):
    config = CONFIGS[name]
    theirs = make_open_clip(open_clip, config)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    params = load_clip(tmp_path, clip_shapes(config))
    images, tokens = some_images(config), some_tokens(config.text)
    image_embedding, text_embedding, scale = jax.jit(CLIP(config).apply)({"params": params}, images, tokens)
    with torch.no_grad():
        ids = torch.from_numpy(tokens).long()
        assert_close(image_embedding, theirs.encode_image(nchw(images), normalize=True))
        assert_close(text_embedding, theirs.encode_text(ids, normalize=True))
        assert_close(scale * image_embedding @ text_embedding.T, theirs.get_logits(nchw(images), ids)[0])


def test_penultimate_layer_equals_open_clip(open_clip, tmp_path):
    """Stable Diffusion 2's text encoder, from OpenCLIP's own file."""
    config = CONFIGS["embedded"]
    theirs = make_open_clip(open_clip, config)
    # OpenAI's files state sizes beside their weights.
    torch.save({**theirs.state_dict(), "context_length": torch.tensor(12)}, tmp_path / "open_clip_pytorch_model.bin")
    tower = TextTower(width=48, depth=2, heads=4, vocab_size=60, context_length=12)
    params = load_text_model(tmp_path, text_shapes(tower))
    tokens = some_tokens(tower)
    with torch.no_grad():
        layers = theirs.forward_intermediates(
            text=torch.from_numpy(tokens).long(), text_indices=[1], normalize_intermediates=True,
            intermediates_only=True,
        )  # fmt: skip
    assert_close(jax.jit(TextModel(tower).apply)({"params": params}, tokens), layers["text_intermediates"][0])


OPEN_CLIP_NAMES = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336": "ViT-L-14-336-quickgelu",
    "ViT-H/14": "ViT-H-14",
    "ViT-g/14": "ViT-g-14",
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_open_clips(name, open_clip):
    """Names and shapes of every tensor, and what the shapes do not show: heads and activations."""
    config = PRESETS[name]
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip.get_model_config(OPEN_CLIP_NAMES[name]))
    # Arrays of stride 0: nothing is allocated.
    stored = {n: np.broadcast_to(np.float32(0), tuple(t.shape)) for n, t in theirs.state_dict().items()}
    ours = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(clip_shapes(config))[0]:
        dotted = ".".join(key.key for key in path)
        shape = leaf.shape[::-1] if dotted.endswith("kernel") else leaf.shape
        if "patch_embedding" in dotted:
            shape = (shape[0], 3, config.patch, config.patch)
        ours[published_name(dotted)] = shape
    assert {n: t.shape for n, t in _from_openai(stored).items()} == ours
    for tower, blocks in (
        (config.image, theirs.visual.transformer.resblocks),
        (config.text, theirs.transformer.resblocks),
    ):
        assert {block.attn.num_heads for block in blocks} == {tower.heads}
        quick = {type(block.mlp.gelu).__name__ for block in blocks}
        assert quick == {"QuickGELU" if tower.activation == "quick_gelu" else "GELU"}


@pytest.mark.parametrize(
    ("name", "parameters"), [("stable-diffusion-1", 123_060_480), ("stable-diffusion-2", 340_387_840)]
)
def test_text_encoders_of_stable_diffusion(name, parameters):
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(text_shapes(TEXT_ENCODERS[name]))) == parameters


@pytest.mark.parametrize("size", [(32, 32), (97, 97), (61, 50), (40, 90), (224, 171), (28, 45)])
def test_preprocessing_is_the_published_one(size, transformers, open_clip):
    target = 28
    height, width = size
    smooth = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[None, :, :, None] + np.array([0, 90, 170])
    noise = np.random.default_rng(0).integers(0, 60, (2, *size, 3))
    images = ((smooth + noise) % 256).astype(np.uint8)
    ours = preprocess(images, target)
    assert ours.dtype == np.float32 and ours.shape == (2, target, target, 3)

    crop = {"height": target, "width": target}
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": target}, crop_size=crop)
    theirs = processor([Image.fromarray(image) for image in images], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), atol=2e-6)

    transform = open_clip.image_transform(target, is_train=False)
    original = np.stack([transform(Image.fromarray(image)).numpy() for image in images]).transpose(0, 2, 3, 1)
    surplus = int(target * max(size) / min(size)) - target
    if round(surplus / 2) == surplus // 2:
        np.testing.assert_allclose(ours, original, atol=2e-6)
    else:  # their window lies one pixel further on
        axis = 1 if height > width else 2
        one = [slice(None)] * 4
        ahead, behind = [*one], [*one]
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        np.testing.assert_allclose(ours[tuple(ahead)], original[tuple(behind)], atol=2e-6)


# --- tokenizer ---

SOURCE = SceneSource(32, train=200, tuning=0, heldout=0)
CORPUS = [text for i in range(200) for text in captions(SOURCE.scene("train", i), 2, i)]
SOME = [
    "", " ", "\n\t", "a photo of a cat", "A Photo OF a CAT!", "don't, we'll, I'M, they've, it's, you'd, we're",
    "'s't're", "red!!star?!...", "hello world , (yes)", "3 dogs & 12,500 cats @ 50% -- №7", "Ünïcödé naïve ﬁ ½ ²",
    "e\u0301te\u0301 A\u030a", "漢字とかな", "עברית العربية", "🏳️‍🌈👩‍👩‍👧‍👦 👍🏽 emoji🙂mid",
    "a\u00a0b\u2003c\u3000d", "İstanbul ẞ ς",
    "<|endoftext|>", "a <|startoftext|> b", "<|ENDOFTEXT|> x", "<|endoftext|>star<|endoftext|>", "<|pad|> <|end",
    "a</w>b </w>", "\x00\x01\x7f\u200b\ufeff", "x" * 400, "star " * 100, "under_score snake_case #tag",
    "https://a.b/c?d=e&f", "l'été qu'il", "“quotes” ‘single’ – dash —", "...!", "!", "a ! b", "٣ ௩ 一二三 Ⅷ",
]  # fmt: skip


def many_texts():
    rng = random.Random(0)
    alphabet = "abc ABC 'sdtré漢🙂!?.,-_12\t \u0301"
    made = ["".join(rng.choice(alphabet) for _ in range(rng.randrange(40))) for _ in range(200)]
    return SOME + CORPUS[:100] + made


@pytest.fixture(scope="module")
def vocabulary():
    """A small vocabulary in the published order: bytes, bytes that end a word, merges, start and end."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words = pre_tokenizers.Split(Regex(PUBLISHED_PATTERN), behavior="removed", invert=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=ALPHABET, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator([text.lower() for text in CORPUS + SOME[3:9] * 5], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    names = [*ALPHABET, *(symbol + "</w>" for symbol in ALPHABET), *(a + b for a, b in merges), START, END]
    assert len(merges) > 100 and names.index("!") == 0
    return {name: number for number, name in enumerate(dict.fromkeys(names))}, merges


def added(content: str) -> dict:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def write_published(folder, vocabulary, pad: str | None):
    """A tokenizer's folder as Stable Diffusion's repositories have it: 1 pads with the end token, 2 with "!"."""
    vocab, merges = vocabulary
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    if pad is None:
        return folder
    roles = {"bos_token": added(START), "eos_token": added(END), "unk_token": added(END), "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    config = {**roles, "model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    for role in ("bos_token", "eos_token", "unk_token"):
        config[role] = {"__type": "AddedToken", **roles[role]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def their_ids(tokenizer, texts, length):
    """As diffusers' StableDiffusionPipeline calls it."""
    batch = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="np")
    return batch.input_ids


@pytest.mark.parametrize("pad", [None, END, "!"])
@pytest.mark.parametrize("whole", [False, True], ids=["vocab.json", "tokenizer.json"])
def test_published_tokenizer_equals_transformers(pad, whole, vocabulary, transformers, tmp_path):
    folder = write_published(tmp_path / "published", vocabulary, pad)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    if whole:
        theirs.save_pretrained(tmp_path / "saved")
        folder = tmp_path / "saved"
        assert (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").exists()
        theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    end = len(vocabulary[0]) - 1
    assert (ours.start_id, ours.end_id, ours.pad_id) == (end - 1, end, 0 if pad == "!" else end)
    texts = many_texts()
    for length in (77, 9):
        ids = ours.encode(texts, length)
        np.testing.assert_array_equal(ids, their_ids(theirs, texts, length))
        assert (ids == end).any(axis=1).all()

    exported = tmp_path / "exported"
    assert save_for_transformers(ours, exported, 77) == "CLIPTokenizer"
    again = transformers.AutoTokenizer.from_pretrained(exported)
    assert type(again).__name__ == "CLIPTokenizer" and again.model_max_length == 77
    np.testing.assert_array_equal(their_ids(again, texts, 77), ours.encode(texts, 77))
    np.testing.assert_array_equal(load_tokenizer(exported).encode(texts, 77), ours.encode(texts, 77))


@pytest.mark.parametrize("vocab_size", [480, 3_000])
def test_trained_tokenizer_in_transformers(vocab_size, transformers, tmp_path):
    ours = train_tokenizer(CORPUS, vocab_size, tmp_path / "bpe.json")
    folder = tmp_path / "exported"
    assert save_for_transformers(ours, folder, 24) == "PreTrainedTokenizerFast"
    texts = [*many_texts(), "<|unused1500|> <|pad|>"]
    expected = ours.encode(texts, 24)
    for theirs in (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.PreTrainedTokenizerFast.from_pretrained(folder),
    ):
        assert theirs.model_max_length == 24
        np.testing.assert_array_equal(their_ids(theirs, texts, theirs.model_max_length), expected)
        longest = theirs(texts[:3], padding="longest", return_tensors="np").input_ids
        assert theirs.batch_decode(longest[:, 1:-1]) is not None
        assert theirs.decode(expected[3], skip_special_tokens=True).strip() == texts[3]
    np.testing.assert_array_equal(load_tokenizer(folder).encode(texts, 24), expected)
