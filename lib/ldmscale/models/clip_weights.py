"""Published CLIP weights: transformers' ``CLIPModel`` files, its single towers, OpenAI's and OpenCLIP's; towers out.

All become transformers' names first. A file is told by its tensors' names, so a path is all that a user gives.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ldmscale.errors import UserError
from ldmscale.models.clip import TextTower
from ldmscale.models.norms import LAYER_NORM_EPSILON
from ldmscale.models.published_config import PublishedConfig
from ldmscale.models.weights import Stored, from_tree, read_tensors, to_tree, torch_name

PARTS = ("vision_model", "text_model", "visual_projection", "text_projection", "logit_scale")
# Buffers: positions of transformers before 4.31, the sizes that OpenAI's files state.
IGNORED = (r".*\.position_ids", "input_resolution", "context_length", "vocab_size")
# transformers 5 holds a lone tower without its name in front.
LONE = {"text_model": "embeddings.token_embedding.weight", "vision_model": "embeddings.patch_embedding.weight"}

# What a text encoder's config.json may say, with transformers' defaults: what is read, and what has to stay.
TEXT_SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
TEXT_FIXED = {
    "architectures": "CLIPTextModel",
    "model_type": "clip_text_model",
    "layer_norm_eps": LAYER_NORM_EPSILON,
    "use_attention_mask": (None, False),
}

# OpenAI's and OpenCLIP's names -> transformers'; a block's own names follow its number.
OPENAI_MODULES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
OPENAI_PROJECTIONS = ("visual.proj", "text_projection")  # bare [in,out] matrices
OPENAI_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(ln_1|ln_2|attn|mlp\.c_fc|mlp\.c_proj)\.(.+)")
OPENAI_BLOCK_MODULES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn": "self_attn",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def published_name(dotted: str) -> str:
    """Name in transformers' ``CLIPModel`` of our parameter in :class:`ldmscale.models.clip.CLIP`."""
    return torch_name(dotted, ("layers",))


def load_clip(path: str | Path, like: Any) -> Any:
    """Parameters of :class:`ldmscale.models.clip.CLIP` from a file or folder in any published layout.

    ``like`` is the tree of their shapes, or some of its top-level entries: one tower and its projection, for
    instance; what the file holds of the others is left alone. Raises UserError naming what does not fit.
    """
    return _fit(_read(path), like, path)


def load_text_model(path: str | Path, like: Any) -> Any:
    """Parameters of :class:`ldmscale.models.clip.TextModel` alone, from a text encoder's file or a whole CLIP's.

    ``like`` is the tree of their shapes. Layers past its depth are left alone, so that a tower of 24 layers serves an
    encoder that ends at the 23rd (Stable Diffusion 2). Raises UserError naming what does not fit.
    """
    depth = len(like["encoder"])
    layer = re.compile(r"text_model\.encoder\.layers\.(\d{1,4})\..*")
    stored = {
        name: tensor
        for name, tensor in _read(path).items()
        if not ((match := layer.fullmatch(name)) and int(match[1]) >= depth)
    }
    return _fit(stored, {"text_model": like}, path)["text_model"]


def _fit(stored: Stored, like: Any, path: str | Path) -> Any:
    unwanted = set(PARTS) - set(like)
    stored = {name: tensor for name, tensor in stored.items() if name.split(".")[0] not in unwanted}
    return to_tree(stored, like, published_name, path, IGNORED)


def _read(path: str | Path) -> Stored:
    """The tensors of ``path`` under the names of transformers' ``CLIPModel``."""
    stored = read_tensors(path)
    if any(name.startswith("visual.layer1.") for name in stored):
        raise UserError(f"{path} holds a CLIP whose image encoder is a ResNet: give one with a ViT")
    if "ln_final.weight" in stored or "visual.ln_post.weight" in stored:
        return _from_openai(stored)
    for tower, mark in LONE.items():
        if mark in stored:
            return {name if name.split(".")[0] in PARTS else f"{tower}.{name}": t for name, t in stored.items()}
    return stored


def _from_openai(stored: Stored) -> Stored:
    out: Stored = {}
    for name, tensor in stored.items():
        if match := OPENAI_BLOCK.fullmatch(name):
            visual, number, module, leaf = match.groups()
            block = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}.{OPENAI_BLOCK_MODULES[module]}"
            if leaf.startswith("in_proj_") and tensor.ndim and not len(tensor) % 3:  # query, key and value in one
                for projection, part in zip("qkv", np.array_split(tensor, 3), strict=True):
                    out[f"{block}.{projection}_proj.{leaf.removeprefix('in_proj_')}"] = part
            else:
                out[f"{block}.{leaf}"] = tensor
            continue
        module, _, leaf = name.rpartition(".")
        if name in OPENAI_MODULES:
            out[OPENAI_MODULES[name]] = tensor.T if name in OPENAI_PROJECTIONS else tensor
        else:
            out[f"{OPENAI_MODULES[module]}.{leaf}" if module in OPENAI_MODULES else name] = tensor
    return out


def transformers_tensors(params: Any) -> Stored:
    """Parameters of :class:`ldmscale.models.clip.TextModel` as the tensors of a ``CLIPTextModel`` file, for
    :func:`transformers_config`'s network."""
    return from_tree({"text_model": params}, published_name)


def transformers_config(tower: TextTower, pad_id: int) -> dict[str, Any]:
    """``config.json`` of the same text encoder in transformers; ``pad_id`` is the tokenizer's."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": tower.activation,
        "vocab_size": tower.vocab_size,
        "max_position_embeddings": tower.context_length,
        "layer_norm_eps": LAYER_NORM_EPSILON,
        "pad_token_id": pad_id,
        "bos_token_id": tower.vocab_size - 2,
        "eos_token_id": tower.end_token,
    }


def text_tower(path: str | Path) -> TextTower:
    """The text encoder that transformers' ``config.json`` of a ``CLIPTextModel`` describes.

    The inverse of :func:`transformers_config`. Raises UserError naming the file and the key where the network is not
    one of ours, or the file is missing or broken.
    """
    stored = PublishedConfig(path, TEXT_SHAPE, TEXT_FIXED)
    return stored.made(
        TextTower,
        width=stored.whole("hidden_size"),
        depth=stored.whole("num_hidden_layers"),
        heads=stored.whole("num_attention_heads"),
        mlp=stored.whole("intermediate_size"),
        activation=stored["hidden_act"],
        vocab_size=stored.whole("vocab_size"),
        context_length=stored.whole("max_position_embeddings"),
    )
