"""``ldmscale family``: what the members of a family cost, from their widths alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from typing import Any

from ldmscale.cells import paper
from ldmscale.cells.cost import Shape, UNetShape, family_shape, flops, model_shape, params, unet_flops
from ldmscale.cli.options import aligned, command, context, whole, whole_list
from ldmscale.errors import UserError

ABOUT = """\
Parameters and cost of every network of a family, by arithmetic: no network is made, so 5B takes no longer than 39M.

Without options it is the paper's family of eleven (arXiv 2404.01367, Table 1), with what the paper prints beside it.
GFLOPs count one evaluation of the U-Net on one latent, 2 a multiply-accumulate, attention products included. A step
of sampling with guidance takes two evaluations; training takes about three an image and step."""
EXAMPLE = """\
  ldmscale family                                  the paper's eleven, on 64 x 64 latents
  ldmscale family --filters 64,128,320             some widths of the paper's architecture
  ldmscale family --latent-size 32                 the same U-Nets for 256-pixel images
  ldmscale family --config configs/emoji.yaml      the family of a study, on its own latents"""


@dataclass(frozen=True)
class Member:
    """A row of the table; ``printed`` is what the paper's Table 1 says of this network at this latent size."""

    name: str
    shape: Shape
    norm_cost: float

    @property
    def params(self) -> int:
        return params(self.shape)

    @property
    def gflops(self) -> float:
        return flops(self.shape) / 1e9

    @property
    def printed(self) -> paper.Printed | None:
        known = isinstance(self.shape, UNetShape) and self.shape.latent_size == paper.LATENT_SIZE
        return paper.printed(self.shape.filters, self.params) if known else None

    @property
    def sizes(self) -> dict[str, int]:
        """What the config tells it apart by."""
        keys = ("filters",) if isinstance(self.shape, UNetShape) else ("width", "depth")
        return {key: getattr(self.shape, key) for key in keys}


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = command(commands, "family", "parameters and cost of every network of a family", ABOUT, EXAMPLE)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--config",
        metavar="FILE",
        nargs="+",
        help="the study of ./config.yaml with these overlays, as by snakemake --configfile",
    )
    which.add_argument(
        "--filters",
        metavar="N,N,...",
        type=whole_list,
        help="widths of the first level, multiples of 32 (default: the paper's eleven)",
    )
    parser.add_argument(
        "--latent-size", metavar="N", type=whole(), help="side of a latent (default: 64, or the study's)"
    )
    parser.add_argument(
        "--context",
        metavar="TOKENSxWIDTH",
        type=context,
        help="text states the U-Net attends to (default: 77x1024, or the study's)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every digit")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    shapes, reference = _of_study(args.config) if args.config else _of_paper(args.filters or list(paper.TABLE_1))
    given = {"latent_size": args.latent_size, "context": args.context}
    given = {key: value for key, value in given.items() if value}
    reference = replace(reference, **given)
    unit = unet_flops(reference)
    members = []
    for name, shape in shapes.items():
        shape = replace(shape, **given)
        members.append(Member(name, shape, flops(shape) / unit))
    print(_json(members, reference) if args.json else _text(members, reference))


def _of_paper(filters: list[int]) -> tuple[dict[str, UNetShape], UNetShape]:
    for width in filters:
        if width % paper.NORM_GROUPS:
            raise UserError(
                f"--filters has {width}: it must be a multiple of {paper.NORM_GROUPS}, the group norms' groups"
            )
    names = {width: paper.TABLE_1[width].name if width in paper.TABLE_1 else f"f{width}" for width in filters}
    return {names[width]: paper.paper_shape(width) for width in filters}, paper.paper_shape(paper.REFERENCE_FILTERS)


def _of_study(overlays: list[str]) -> tuple[dict[str, Shape], UNetShape]:
    from ldmscale.config.read import read_study

    study = read_study(overlays)
    shapes = {name: model_shape(study, model) for name, model in study.models.items()}
    return shapes, family_shape(study, study.config["reference_filters"])


def _json(members: list[Member], reference: UNetShape) -> str:
    rows = [
        {
            "name": m.name, **m.sizes, "params": m.params, "gflops": m.gflops,
            "norm_cost": m.norm_cost, "paper": m.printed and vars(m.printed),
        }
        for m in members
    ]  # fmt: skip
    setting = {
        "latent": [reference.latent_size, reference.latent_size, reference.latent_channels],
        "context": reference.context,
        "reference_filters": reference.filters,
    }
    return json.dumps({**setting, "models": rows}, indent=1)


def _text(members: list[Member], reference: UNetShape) -> str:
    printed = [m.printed for m in members]
    slip = any(row and row.name == "39M" for row in printed)
    both = any("width" in m.sizes for m in members)
    header = ["model", "filters, or width x depth" if both else "filters", "parameters", "GFLOPs", "norm. cost"]
    rows = [
        [m.name, " x ".join(map(str, m.sizes.values())), _count(m.params), _number(m.gflops), f"{m.norm_cost:.3f}"]
        for m in members
    ]
    if any(printed):
        header += ["paper: params", "GFLOPs", "norm. cost"]
        for row, p in zip(rows, printed, strict=True):
            mark = "*" if p and p.name == "39M" else " " if slip else ""
            row += [p.name, f"{p.gflops:.1f}{mark}", f"{p.norm_cost:.2f}"] if p else [""] * 3
    side, (tokens, width) = reference.latent_size, reference.context
    notes = [
        f"GFLOPs: one evaluation on a {side} x {side} x {reference.latent_channels} latent with {tokens} text states "
        f"of width {width}, 2 a multiply-accumulate.",
        f"Normalised cost: relative to filters {reference.filters}.",
        *([f"* {paper.SLIP}"] if slip else []),
    ]
    return "\n".join([*aligned([header, *rows]), "", *notes])


def _count(params: int) -> str:
    return f"{params / 1e6:,.1f} M" if params >= 1e6 else f"{params / 1e3:.1f} k"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"
