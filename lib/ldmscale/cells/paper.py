"""The family of arXiv 2404.01367: its architecture, and its Table 1 as printed, to stand beside what is measured."""

from __future__ import annotations

from dataclasses import dataclass

from ldmscale.cells.cost import UNetShape, unet_params

LATENT_SIZE = 64
CONTEXT = (77, 1024)  # CLIP's tokens, and the text width that the printed parameter counts require
NORM_GROUPS, HEADS = 32, 8
REFERENCE_FILTERS = 320  # normalised cost 1
SLIP = "The paper's 25.3 GFLOPS for 39M contradict its own normalised cost, .07 = 53 / 789.3: the network has 53."
SETTING = "64 x 64 latents, 30,000 captions of COCO-2014, 50-step DDIM, CFG 7.5"


@dataclass(frozen=True)
class Printed:
    """A row of Table 1 as printed: GFLOPS of one U-Net evaluation, cost relative to 866M, FID and CLIP score."""

    name: str
    gflops: float
    norm_cost: float
    fid: float
    clip: float


TABLE_1 = {  # by filters
    64: Printed("39M", 25.3, 0.07, 25.30, 0.305),
    96: Printed("83M", 102.7, 0.13, 24.30, 0.308),
    128: Printed("145M", 161.5, 0.20, 24.18, 0.310),
    160: Printed("223M", 233.5, 0.30, 23.76, 0.310),
    192: Printed("318M", 318.5, 0.40, 22.83, 0.311),
    224: Printed("430M", 416.6, 0.53, 22.35, 0.312),
    256: Printed("558M", 527.8, 0.67, 22.15, 0.312),
    288: Printed("704M", 652.0, 0.83, 21.82, 0.312),
    320: Printed("866M", 789.3, 1.00, 21.55, 0.312),
    512: Printed("2B", 1887.5, 2.39, 20.98, 0.312),
    768: Printed("5B", 4082.6, 5.17, 20.14, 0.314),
}


def paper_shape(filters: int, latent_size: int = LATENT_SIZE, context: tuple[int, int] = CONTEXT) -> UNetShape:
    """The paper's U-Net (Stable Diffusion's) at ``filters``; ``context`` is (tokens, width) of the text states."""
    return UNetShape(filters, (1, 2, 4, 4), 2, (True, True, True, False), latent_size, 4, context)


def printed(filters: int, params: int) -> Printed | None:
    """The row of Table 1 that describes a U-Net of ``filters`` and ``params`` parameters.

    None where the paper has no such width, or where the network of that width is another one: its size differs by
    more than 5 %, which a text encoder of another width explains.
    """
    row = TABLE_1.get(filters)
    return row if row and abs(params / unet_params(paper_shape(filters)) - 1) <= 0.05 else None
