"""A study of published weights: small random networks in the files that Stable Diffusion comes in, none trained."""

import json

import numpy as np
import pytest
from folders import RESULTS
from safetensors.numpy import load_file
from tokenizers.pre_tokenizers import ByteLevel

from ldmscale.metrics.torch_guard import guard_torchvision
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.autoencoder_weights import diffusers_config as autoencoder_json
from ldmscale.models.unet import UNetConfig
from ldmscale.models.unet_weights import diffusers_config as unet_json
from ldmscale.provenance import read_json

torch = pytest.importorskip("torch")
VOCABULARY, LENGTH = 522, 12
TEXT = {"width": 16, "depth": 2, "heads": 2, "activation": "gelu", "vocab_size": VOCABULARY, "context_length": LENGTH}
CLIP = {
    "image_size": 24, "patch": 8, "image_width": 16, "image_depth": 1, "image_heads": 2, "text_width": 24,
    "text_depth": 1, "text_heads": 3, "embed_dim": 10, "activation": "quick_gelu",
    "vocab_size": VOCABULARY, "context_length": LENGTH,
}  # fmt: skip
# A text encoder that stops before its last layer, heads that differ by level, a scale that is given.
OVERLAY = {
    "tokenizer": {"files": "sd/tokenizer", "vocab_size": VOCABULARY, "context_length": LENGTH},
    "autoencoder": {"weights": "sd/vae", "scale": 0.5},
    "clip": {"weights": "scorer", "published": CLIP},
    "text_encoder": {"weights": "sd/text_encoder", "published": TEXT},
    "reference_filters": 8,
    "models": [{"name": "SD", "filters": 8, "weights": "sd/unet", "heads": [2, 4]}],
    "experiments": {
        "headline": {"steps": [4]},
        "training": None,
        "grid": {"steps": [2, 4], "cfg": [1.0, 4.0]},
        "samplers": None,
        "same_cost": None,
        "superres": None,
        "superres_training": {"models": "all", "steps": [2]},
        "interpolation": {"models": "all"},
        **dict.fromkeys(("dreambooth", "codi", "codi_timesteps", "guided")),
    },
    "superres": {"items": 16, "finetune": {"steps": 2, "checkpoints": [0, 2], "warmup": 0}},
    **dict.fromkeys(("dreambooth", "codi", "guided")),
    "figures": {
        **{f"fig{n:02}": None for n in (3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22)},
        "fig07": {"models": ["SD"]},
        "dreambooth": None,
        "families": None,
        "fits": None,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """The folder of such a pipeline, and of a CLIP to score with."""
    guard_torchvision()
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")

    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    unet = UNetConfig(8, (1, 2), 1, (True, False), heads=(2, 4), norm_groups=2, context_width=TEXT["width"])
    vae = AutoencoderConfig(8, (1, 1), 1, 4, 4, mid_attention=False)
    diffusers.UNet2DConditionModel.from_config(unet_json(unet, 8)).save_pretrained(root / "sd" / "unet")
    diffusers.AutoencoderKL.from_config(autoencoder_json(vae, 16, 0.5)).save_pretrained(root / "sd" / "vae")
    text = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2}
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "bos_token_id": VOCABULARY - 2,
              "eos_token_id": VOCABULARY - 1}  # fmt: skip
    transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**text, **common, hidden_act="gelu")
    ).save_pretrained(root / "sd" / "text_encoder")  # fmt: skip
    transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**common, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 1,
                         "num_attention_heads": 3},
            vision_config={"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1,
                           "num_attention_heads": 2, "image_size": 24, "patch_size": 8},
            projection_dim=10,
        )
    ).save_pretrained(root / "scorer")  # fmt: skip
    # CLIP's order: bytes, bytes that end a word, merges, special tokens.
    alphabet = sorted(ByteLevel.alphabet())
    merges = ["r e", "re d</w>", "c i", "ci r", "c l", "cl e</w>", "s t", "a r</w>"]
    names = [*alphabet, *(f"{s}</w>" for s in alphabet), *(merge.replace(" ", "") for merge in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    assert len(names) == VOCABULARY
    (root / "sd" / "tokenizer").mkdir()
    vocabulary = {name: i for i, name in enumerate(names)}
    (root / "sd" / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (root / "sd" / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return root


@pytest.fixture
def ready(sd, folder):
    """A working folder beside which the weights lie."""
    for name in ("sd", "scorer"):
        (folder / name).symlink_to(sd / name)
    return folder


def test_a_published_pipeline_is_sampled_finetuned_scored_and_drawn_and_not_pretrained(ready):
    done = ready.run(overlay=OVERLAY)
    assert not {"pretrain", "latents"} & set(done.jobs), done.jobs
    assert done.jobs["published"] == done.jobs["text_encoder"] == 1
    results = ready / RESULTS
    cell = results / "cells/task=t2i/model=SD/weights=published/sampler=ddim/steps=4/cfg=4"
    images = np.load(cell / "heldout.npy")
    assert images.shape == (64, 16, 16, 3) and images.std() > 1
    assert not np.array_equal(images, np.load(cell.with_name("cfg=1") / "heldout.npy"))
    for name in ("fig01.png", "fig02.png", "fig05.png", "fig07.png"):
        assert (results / "figures" / name).stat().st_size > 5_000
    assert "SD" in (results / "tables" / "table1.md").read_text()
    assert read_json(results / "models/SD/published.json")["weights"] == {"published": "sd/unet"}
    # Finetuning begins at the published weights.
    finetuned = {n: load_file(ready / w) for n, w in read_json(results / "models/SD/superres.json")["weights"].items()}
    bias = load_file(ready / "sd/unet/diffusion_pytorch_model.safetensors")["conv_in.bias"]
    np.testing.assert_array_equal(finetuned["superres-0"]["conv_in.bias"], bias)
    assert finetuned["superres-0"]["conv_in.kernel"].shape == (3, 3, 8, 8)
    assert (finetuned["superres-2"]["conv_in.bias"] != bias).any()
    restored = results / "cells/task=superres/model=SD/weights=superres-2/sampler=ddim/steps=2/cfg=1/superres.npy"
    assert np.load(restored).shape == (64, 16, 16, 3)
    for path in (ready / "sd" / "unet").resolve().iterdir():
        path.touch()  # copied anew: the same bytes at another time
    assert "nothing to be done" in ready.run(overlay=OVERLAY).said.lower()


def test_a_network_of_another_shape_is_refused_naming_the_tensor(ready):
    manifest = RESULTS / "models" / "SD" / "published.json"
    models = [{**OVERLAY["models"][0], "filters": 16}]
    said = ready.refused(manifest, overlay={**OVERLAY, "models": models})
    assert "error: sd/unet: tensor '" in said and "does not fit" in said
    assert not (ready / manifest).exists()


def test_weights_that_are_not_there_are_named(ready):
    models = [{**OVERLAY["models"][0], "weights": "nowhere"}]
    said = ready.refused(RESULTS / "models" / "SD" / "published.json", overlay={**OVERLAY, "models": models})
    assert "error: nowhere does not exist" in said
