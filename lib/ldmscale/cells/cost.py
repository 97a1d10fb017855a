"""What a cell costs, by arithmetic alone: plans are made before JAX is imported.

Counts are of the Stable Diffusion U-Net (:mod:`ldmscale.models.unet`), 2 FLOPs a multiply-accumulate, attention
products included; ``tests/unit/test_cost.py`` holds them to the traced program's count exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

from ldmscale.config.study import Study


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


def unet_macs(shape: UNetShape) -> int:
    """Multiply-accumulates of one U-Net evaluation of one latent."""
    widths = [shape.filters * m for m in shape.channel_mult]
    first, time = widths[0], 4 * widths[0]
    tokens, text = shape.context

    def conv(cin: int, cout: int, size: int, kernel: int = 3) -> int:
        return kernel * kernel * cin * cout * size * size

    def resnet(cin: int, cout: int, size: int) -> int:
        shortcut = conv(cin, cout, size, 1) if cin != cout else 0
        return conv(cin, cout, size) + conv(cout, cout, size) + time * cout + shortcut

    def transformer(c: int, size: int) -> int:
        n = size * size
        projections = 2 * n * c * c
        self_attention = 4 * n * c * c + 2 * n * n * c
        cross_attention = 2 * n * c * c + 2 * tokens * text * c + 2 * n * tokens * c
        return projections + self_attention + cross_attention + 12 * n * c * c  # GEGLU: c -> 2*4c, 4c -> c

    sizes = [shape.latent_size]
    for _ in widths[1:]:
        sizes.append((sizes[-1] + 1) // 2)

    total = first * time + time * time + conv(shape.latent_channels, first, sizes[0])
    skips, channels = [first], first
    for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
        for _ in range(shape.blocks_per_level):
            total += resnet(channels, width, size)
            channels = width
            if shape.attention_levels[level]:
                total += transformer(width, size)
            skips.append(channels)
        if level + 1 < len(widths):
            total += conv(width, width, sizes[level + 1])
            skips.append(channels)
    total += 2 * resnet(channels, channels, sizes[-1]) + transformer(channels, sizes[-1])
    for level in reversed(range(len(widths))):
        width, size = widths[level], sizes[level]
        for _ in range(shape.blocks_per_level + 1):
            total += resnet(channels + skips.pop(), width, size)
            channels = width
            if shape.attention_levels[level]:
                total += transformer(width, size)
        if level > 0:
            total += conv(width, width, sizes[level - 1])
    return total + conv(channels, shape.latent_channels, sizes[0])


def unet_flops(shape: UNetShape) -> int:
    """FLOPs (2 a multiply-accumulate) of one U-Net evaluation of one latent: Table 1's GFLOPS column times 1e9."""
    return 2 * unet_macs(shape)


def family_shape(study: Study, filters: int) -> UNetShape:
    """The cost-bearing numbers of the study's U-Net at ``filters``."""
    unet = study.config["unet"]
    return UNetShape(
        filters=filters,
        channel_mult=tuple(unet["channel_mult"]),
        blocks_per_level=unet["blocks_per_level"],
        attention_levels=tuple(unet["attention_levels"]),
        latent_size=study.latent_size,
        latent_channels=study.config["autoencoder"]["latent_channels"],
        context=(study.config["tokenizer"]["context_length"], study.config["clip"]["text_width"]),
    )


def norm_costs(study: Study) -> dict[str, float]:
    """Cost of one U-Net evaluation of each model, relative to ``reference_filters`` (Table 1's normalised cost)."""
    reference = unet_flops(family_shape(study, study.config["reference_filters"]))
    return {name: unet_flops(family_shape(study, m.filters)) / reference for name, m in study.models.items()}


def steps_at_cost(cost: float, norm_cost: float) -> int:
    """Sampling steps that spend ``cost`` (normalised cost x steps, the paper's axis) at ``norm_cost`` a step."""
    return max(1, round(cost / norm_cost))
