"""Shapes of the published networks that a config can name: numbers alone, since plans are made before JAX starts."""

from __future__ import annotations

from typing import Any

INCEPTION_DIMENSIONS = 2048  # of the features that FID is defined on
CLIP_VOCABULARY = {"vocab_size": 49408, "context_length": 77}


def _clip(patch: int, image: tuple[int, int, int], text: tuple[int, int, int], embed_dim: int, **more: Any) -> dict:
    """Keyword arguments of ``CLIPConfig``; ``image`` and ``text`` are (width, depth, heads)."""
    sizes = dict(zip(("image_width", "image_depth", "image_heads"), image, strict=True))
    sizes |= dict(zip(("text_width", "text_depth", "text_heads"), text, strict=True))
    return {"image_size": 224, "patch": patch, "embed_dim": embed_dim, "pixels": "openai", **CLIP_VOCABULARY, **sizes,
            **more}  # fmt: skip


# OpenAI's networks, with quick GELU; OpenCLIP's, trained on LAION-2B, with GELU. OpenCLIP's own weights in OpenAI's
# shapes take GELU too, but for those that it names "quickgelu".
CLIPS = {
    "ViT-B/32": _clip(32, (768, 12, 12), (512, 12, 8), 512),
    "ViT-L/14": _clip(14, (1024, 24, 16), (768, 12, 12), 768),
    "ViT-L/14@336": _clip(14, (1024, 24, 16), (768, 12, 12), 768, image_size=336),
    "ViT-H/14": _clip(14, (1280, 32, 16), (1024, 24, 16), 1024, activation="gelu"),
    "ViT-g/14": _clip(14, (1408, 40, 16), (1024, 24, 16), 1024, image_mlp=6144, activation="gelu"),
}


def clip_shape(published: str | dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``CLIPConfig`` for a published CLIP, by its name in :data:`CLIPS` or its shape."""
    return (
        dict(CLIPS[published]) if isinstance(published, str) else {"pixels": "openai", **CLIP_VOCABULARY, **published}
    )


# Text encoders of latent diffusion models, as keyword arguments of ``TextTower``: OpenAI's ViT-L/14 in Stable
# Diffusion 1; in 2, OpenCLIP's ViT-H/14 up to its penultimate layer.
TEXT_ENCODERS = {
    "stable-diffusion-1": {"width": 768, "depth": 12, "heads": 12, "activation": "quick_gelu", **CLIP_VOCABULARY},
    "stable-diffusion-2": {"width": 1024, "depth": 23, "heads": 16, "activation": "gelu", **CLIP_VOCABULARY},
}


def text_shape(published: str | dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``TextTower`` for a published one, by its name in :data:`TEXT_ENCODERS` or its shape."""
    return dict(TEXT_ENCODERS[published]) if isinstance(published, str) else {**CLIP_VOCABULARY, **published}
