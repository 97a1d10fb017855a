"""``ldmscale estimate``: what a study costs, stage by stage, before it runs."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ldmscale.cli.options import aligned, command, number, whole
from ldmscale.errors import UserError

if TYPE_CHECKING:
    from ldmscale.cells.estimate import Work

# Dense bfloat16 TFLOP/s of a chip, as Google's pages on each TPU and NVIDIA's data sheets print them.
PEAKS = {"v4": 275, "v5e": 197, "v5p": 459, "v6e": 918, "a100": 312, "h100": 989}
ABOUT = """\
FLOPs of every stage of a study, and what they take: chip-hours at a utilisation that you state, dollars at a price
that you give. Nothing is trained or compiled; FLOPs follow from the config (2 a multiply-accumulate, a backward pass
as two forward ones). What the chip really reaches (--mfu) and costs (--price) is yours to know: measure the first on
a short run, take the second from your contract. Time in which a chip waits, for data, a restart or the next job,
comes on top."""
EXAMPLE = """\
  ldmscale estimate --config configs/paper.yaml --images 600000000 --chip v5p --price 4.20
  ldmscale estimate --config configs/paper.yaml --models 39M,83M,145M --chip v5e --mfu 0.35
  ldmscale estimate                                the study of ./config.yaml"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = command(commands, "estimate", "what a study costs, stage by stage", ABOUT, EXAMPLE)
    parser.add_argument(
        "--config", metavar="FILE", nargs="+", default=[],
        help="overlays on ./config.yaml, as by snakemake --configfile",
    )  # fmt: skip
    parser.add_argument("--models", metavar="NAME,...", help="of these models alone (default: all)")
    parser.add_argument("--images", metavar="N", type=whole(), help="size of the training set, if the config says null")
    parser.add_argument("--chip", choices=list(PEAKS), default="v5p", help="whose peak is meant (default: v5p)")
    parser.add_argument(
        "--mfu", metavar="SHARE", type=number(0, 1), default=0.4,
        help="of the chip's peak that programs reach (default: 0.4)",
    )  # fmt: skip
    parser.add_argument("--price", metavar="DOLLARS", type=number(0), help="of a chip-hour")
    parser.add_argument("--json", action="store_true", help="print JSON, a row for each stage and model")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from ldmscale.cells.chain import Chain
    from ldmscale.cells.estimate import Passes, estimate
    from ldmscale.cells.plan import Plan
    from ldmscale.config.read import read_study

    study = read_study(args.config)
    plan = Plan(study)
    wanted = args.models.split(",") if args.models else list(study.models)
    if unknown := [name for name in wanted if name not in study.models]:
        raise UserError(f"--models has '{unknown[0]}'; the study's models are {', '.join(study.models)}")
    images = study.config["data"]["counts"]["train"] or args.images
    from ldmscale.metrics.costs import study_costs

    counted = study_costs({**Chain(plan)["costs"], "models": {}, "finetuned": {}})
    passes = Passes(*(counted[name] for name in ("encode", "decode", "caption")))
    work = [w for w in estimate(plan, passes, images) if not w.model or w.model in wanted]
    peak = PEAKS[args.chip] * 1e12 * args.mfu
    print(_json(work, peak, args) if args.json else _text(work, peak, args, images))


def _hours(flops: float, peak: float) -> float:
    return flops / peak / 3600


def _json(work: list[Work], peak: float, args: argparse.Namespace) -> str:
    rows = [
        {**vars(w), "chip_hours": _hours(w.flops, peak)}
        | ({"dollars": _hours(w.flops, peak) * args.price} if args.price else {})
        for w in work
    ]
    return json.dumps({"chip": args.chip, "mfu": args.mfu, "price": args.price, "work": rows}, indent=1)


def _text(work: list[Work], peak: float, args: argparse.Namespace, images: int | None) -> str:
    stages: dict[str, list[Work]] = {}
    for w in work:
        stages.setdefault(w.stage, []).append(w)
    rows = [["stage", "model", "PFLOPs", "chip-hours", *(["dollars"] if args.price else [])]]

    def row(stage: str, model: str, flops: float) -> None:
        hours = _hours(flops, peak)
        spent = [_number(hours * args.price)] if args.price else []
        rows.append([stage, model, _number(flops / 1e15), _number(hours), *spent])

    for stage, parts in stages.items():
        row(stage, "", sum(w.flops for w in parts))
        if stage in ("pretrain", "generate"):
            for w in parts:
                row("", w.model, w.flops)
    row("all", "", sum(w.flops for w in work))
    notes = [
        f"Chip-hours: at {args.mfu:.0%} of a {args.chip} chip's {PEAKS[args.chip]} TFLOP/s in bfloat16.",
        *([f"Dollars: at {args.price:g} a chip-hour."] if args.price else []),
    ]
    if images is None:
        notes.append("Without encoding the training set, whose size the config does not say: --images N counts it.")
    return "\n".join([*aligned(rows), "", *notes])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"
