"""What a cell costs, by arithmetic alone: plans are made before JAX is imported.

Counts are of the Stable Diffusion U-Net (:mod:`ldmscale.models.unet`) and of the transformer
(:mod:`ldmscale.models.dit`), 2 FLOPs a multiply-accumulate, attention products included; ``tests/unit`` (test_cost.py,
test_cli.py) holds them to the traced program's counts exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ldmscale.config.study import DIT, Model, Study


@dataclass(frozen=True)
class UNetShape:
    """The numbers of a U-Net that its cost depends on; ``context`` is (tokens, width) of the text states."""

    filters: int
    channel_mult: tuple[int, ...]
    blocks_per_level: int
    attention_levels: tuple[bool, ...]
    latent_size: int
    latent_channels: int
    context: tuple[int, int]


@dataclass(frozen=True)
class DiTShape:
    """The numbers of a transformer that its cost depends on (heads are none); ``context`` as of a U-Net."""

    width: int
    depth: int
    patch: int
    mlp_ratio: int
    latent_size: int
    latent_channels: int
    context: tuple[int, int]


Shape = UNetShape | DiTShape
Layer = tuple[str, int, int, int]
DIT_TIME = 256  # sinusoidal features of a transformer's timestep


def _levels(shape: UNetShape) -> tuple[list[int], list[int]]:
    """Channels and sides of the levels, from the full resolution down."""
    sizes = [shape.latent_size]
    for _ in shape.channel_mult[1:]:
        sizes.append((sizes[-1] + 1) // 2)
    return [shape.filters * m for m in shape.channel_mult], sizes


def _encoder(shape: UNetShape) -> tuple[list[Layer], list[tuple[int, int]]]:
    """The way down and the middle block -> (kind, channels in, channels out, side of the output) of each part in the
    order in which they run, and (channels, side) of the skips.

    ``kind`` is conv (3x3), resnet or transformer; the time embedding is left out.
    """
    widths, sizes = _levels(shape)
    layers: list[Layer] = [("conv", shape.latent_channels, widths[0], sizes[0])]
    skips, channels = [(widths[0], sizes[0])], widths[0]
    for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
        for _ in range(shape.blocks_per_level):
            layers.append(("resnet", channels, width, size))
            channels = width
            if shape.attention_levels[level]:
                layers.append(("transformer", width, width, size))
            skips.append((width, size))
        if level + 1 < len(widths):
            layers.append(("conv", width, width, sizes[level + 1]))
            skips.append((width, sizes[level + 1]))
    layers += [(kind, channels, channels, sizes[-1]) for kind in ("resnet", "transformer", "resnet")]
    return layers, skips


def _decoder(shape: UNetShape) -> Iterator[Layer]:
    """The way up, as :func:`_encoder`; the last norm is left out."""
    widths, sizes = _levels(shape)
    skips, channels = _encoder(shape)[1], widths[-1]
    for level in reversed(range(len(widths))):
        width, size = widths[level], sizes[level]
        for _ in range(shape.blocks_per_level + 1):
            yield "resnet", channels + skips.pop()[0], width, size
            channels = width
            if shape.attention_levels[level]:
                yield "transformer", width, width, size
        if level > 0:
            yield "conv", width, width, sizes[level - 1]
    yield "conv", channels, shape.latent_channels, sizes[0]


def unet_macs(shape: UNetShape) -> int:
    """Multiply-accumulates of one U-Net evaluation of one latent."""
    return _macs(shape, [*_encoder(shape)[0], *_decoder(shape)])


def adapter_macs(shape: UNetShape) -> int:
    """Multiply-accumulates of one evaluation of the U-Net's adapter (:mod:`ldmscale.models.adapter`): the encoder and
    middle block again, and a 1x1 convolution for each of their outputs."""
    layers, skips = _encoder(shape)
    widths, sizes = _levels(shape)
    return _macs(shape, layers) + sum((channels * size) ** 2 for channels, size in [*skips, (widths[-1], sizes[-1])])


def codi_ratio(shape: Shape) -> float:
    """Cost of one evaluation of the network with its adapter, relative to the network alone."""
    if isinstance(shape, DiTShape):
        return 1 + dit_adapter_macs(shape) / dit_macs(shape)
    return 1 + adapter_macs(shape) / unet_macs(shape)


def _macs(shape: UNetShape, layers: Iterable[Layer]) -> int:
    """Multiply-accumulates of the time embedding and ``layers``."""
    first = shape.filters * shape.channel_mult[0]
    time = 4 * first
    tokens, text = shape.context

    def conv(cin: int, cout: int, size: int, kernel: int = 3) -> int:
        return kernel * kernel * cin * cout * size * size

    def resnet(cin: int, cout: int, size: int) -> int:
        shortcut = conv(cin, cout, size, 1) if cin != cout else 0
        return conv(cin, cout, size) + conv(cout, cout, size) + time * cout + shortcut

    def transformer(c: int, _: int, size: int) -> int:
        n = size * size
        projections = 2 * n * c * c
        self_attention = 4 * n * c * c + 2 * n * n * c
        cross_attention = 2 * n * c * c + 2 * tokens * text * c + 2 * n * tokens * c
        return projections + self_attention + cross_attention + 12 * n * c * c  # GEGLU: c -> 2*4c, 4c -> c

    count = {"conv": conv, "resnet": resnet, "transformer": transformer}
    return first * time + time * time + sum(count[kind](*numbers) for kind, *numbers in layers)


def unet_params(shape: UNetShape) -> int:
    """Parameters of the U-Net: Table 1's first column. They depend on neither the latent's size nor the tokens."""
    first = shape.filters * shape.channel_mult[0]
    time = 4 * first
    _, text = shape.context

    def dense(cin: int, cout: int) -> int:
        return (cin + 1) * cout

    def conv(cin: int, cout: int, _: int = 0) -> int:
        return dense(9 * cin, cout)

    def resnet(cin: int, cout: int, _: int) -> int:
        shortcut = dense(cin, cout) if cin != cout else 0
        return 2 * cin + conv(cin, cout) + dense(time, cout) + 2 * cout + conv(cout, cout) + shortcut

    def transformer(c: int, _: int, __: int) -> int:
        norms = 2 * c + 3 * 2 * c  # a group norm before the block, three layer norms in it
        attention = (3 * c * c + dense(c, c)) + (c * c + 2 * text * c + dense(c, c))  # q, k, v have no bias
        return norms + 2 * dense(c, c) + attention + dense(c, 8 * c) + dense(4 * c, c)

    count = {"conv": conv, "resnet": resnet, "transformer": transformer}
    rest = dense(first, time) + dense(time, time) + 2 * first  # the time embedding, the last norm
    layers = [*_encoder(shape)[0], *_decoder(shape)]
    return rest + sum(count[kind](*numbers) for kind, *numbers in layers)


def unet_flops(shape: UNetShape) -> int:
    """FLOPs (2 a multiply-accumulate) of one U-Net evaluation of one latent: Table 1's GFLOPS column times 1e9."""
    return 2 * unet_macs(shape)


def dit_macs(shape: DiTShape) -> int:
    """Multiply-accumulates of one evaluation of a transformer on one latent."""
    out = shape.width * shape.patch**2 * shape.latent_channels * _dit_tokens(shape)
    return _dit_macs(shape, shape.depth) + 2 * shape.width**2 + out


def dit_adapter_macs(shape: DiTShape) -> int:
    """Multiply-accumulates of one evaluation of the transformer's adapter: its first half again (at least a block), and
    a linear layer for each of its blocks' outputs."""
    blocks = max(1, shape.depth // 2)
    return _dit_macs(shape, blocks) + blocks * _dit_tokens(shape) * shape.width**2


def _dit_tokens(shape: DiTShape) -> int:
    return (shape.latent_size // shape.patch) ** 2


def _dit_macs(shape: DiTShape, blocks: int) -> int:
    """Multiply-accumulates of the embeddings and the first ``blocks`` blocks."""
    w, n, (tokens, text) = shape.width, _dit_tokens(shape), shape.context
    self_attention = 4 * n * w * w + 2 * n * n * w
    cross_attention = 2 * n * w * w + 2 * tokens * text * w + 2 * n * tokens * w
    block = 6 * w * w + self_attention + cross_attention + 2 * shape.mlp_ratio * n * w * w
    return DIT_TIME * w + w * w + n * shape.patch**2 * shape.latent_channels * w + blocks * block


def dit_params(shape: DiTShape) -> int:
    """Parameters of the transformer; they depend on neither the latent's size nor the tokens."""
    w, (_, text), patch = shape.width, shape.context, shape.patch**2 * shape.latent_channels

    def dense(cin: int, cout: int) -> int:
        return (cin + 1) * cout

    attention = 4 * dense(w, w) + 2 * dense(w, w) + 2 * dense(text, w)
    block = dense(w, 6 * w) + attention + dense(w, shape.mlp_ratio * w) + dense(shape.mlp_ratio * w, w)
    ends = dense(patch, w) + dense(w, 2 * w) + dense(w, patch)
    return dense(DIT_TIME, w) + dense(w, w) + ends + shape.depth * block


def flops(shape: Shape) -> int:
    """FLOPs of one evaluation of the network of either family, 2 a multiply-accumulate."""
    return 2 * dit_macs(shape) if isinstance(shape, DiTShape) else unet_flops(shape)


def params(shape: Shape) -> int:
    """Parameters of the network of either family."""
    return dit_params(shape) if isinstance(shape, DiTShape) else unet_params(shape)


def family_shape(study: Study, filters: int) -> UNetShape:
    """The cost-bearing numbers of the study's U-Net at ``filters``."""
    unet = study.config["unet"]
    return UNetShape(
        filters=filters,
        channel_mult=tuple(unet["channel_mult"]),
        blocks_per_level=unet["blocks_per_level"],
        attention_levels=tuple(unet["attention_levels"]),
        **_ends(study),
    )


def model_shape(study: Study, model: Model) -> Shape:
    """The cost-bearing numbers of ``model``'s network."""
    if model.family != DIT:
        return family_shape(study, model.filters)
    return DiTShape(width=model.net["width"], depth=model.net["depth"], **study.config["dit"], **_ends(study))


def _ends(study: Study) -> dict[str, Any]:
    """What costs depend on whatever the network."""
    text = study.text_params()
    return {
        "latent_size": study.latent_size,
        "latent_channels": study.config["autoencoder"]["latent_channels"],
        "context": (text["context_length"], text["width"]),
    }


def norm_costs(study: Study) -> dict[str, float]:
    """Cost of one evaluation of each model, relative to the U-Net of ``reference_filters`` (Table 1's normalised
    cost): one unit for both families."""
    reference = unet_flops(family_shape(study, study.config["reference_filters"]))
    return {name: flops(model_shape(study, model)) / reference for name, model in study.models.items()}


def steps_at_cost(cost: float, norm_cost: float) -> int:
    """Sampling steps that spend ``cost`` (normalised cost x steps, the paper's axis) at ``norm_cost`` a step."""
    return max(1, round(cost / norm_cost))
