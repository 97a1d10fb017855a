"""``ldmscale preflight``: does a training step or the sampling program fit a TPU slice? Answered by compiling it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ldmscale.cells import paper
from ldmscale.cells.cost import unet_flops
from ldmscale.cli.options import aligned, command, whole
from ldmscale.errors import UserError

if TYPE_CHECKING:
    from jax.stages import Lowered

    from ldmscale.tpu import Footprint
    from ldmscale.training.programs import Held

ABOUT = """\
Compile the real training step (loss, gradients, AdamW, weight average), or the sampling program with guidance, for a
TPU slice that need not be there, and say what it takes of every device: memory by kind, whether that fits, FLOPs, and
what devices send one another. No TPU is used and no network is allocated; compiling takes minutes, and grows with the
network. With --shapes nothing is compiled: what training holds of every device whatever the batch, in seconds.

The network is one of the paper's (arXiv 2404.01367), or one of its architecture at another width. Exit status: 0 if
the program fits, 1 if it does not. All but --shapes needs the optional dependency `tpu` (libtpu)."""
EXAMPLE = """\
  ldmscale preflight --model 5B --shapes
  ldmscale preflight --model 866M --topology v5e:4x4 --fsdp 16
  ldmscale preflight --model 39M --topology v5e:2x2 --program sample --batch 32 --latent-size 32"""
SHARES = [2**n for n in range(9)]  # of one state: a v5e pod is 256 chips
PROGRAMS = {"train": "training step", "sample": "sampling, guided"}


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = command(commands, "preflight", "does a program fit a TPU slice? (compiled, not run)", ABOUT, EXAMPLE)
    which = parser.add_mutually_exclusive_group(required=True)
    names = [row.name for row in paper.TABLE_1.values()]
    which.add_argument("--model", metavar="NAME", choices=names, help=f"one of the paper's U-Nets: {', '.join(names)}")
    which.add_argument("--filters", metavar="N", type=whole(), help="or its width, a multiple of 32")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", metavar="SLICE", help="version and chips a side, as in v5e:4x4 or v5p:2x2x1")
    where.add_argument(
        "--shapes",
        action="store_true",
        help="do not compile: state and gradients of every device, for each --fsdp from 1 to 256",
    )
    parser.add_argument("--program", choices=list(PROGRAMS), default="train", help="what to compile (default: train)")
    parser.add_argument("--batch", metavar="N", type=whole(), default=8, help="images a device (default: 8)")
    parser.add_argument(
        "--latent-size",
        metavar="N",
        type=whole(),
        default=paper.LATENT_SIZE,
        help="side of a latent (default: 64, for 512-pixel images)",
    )
    parser.add_argument(
        "--fsdp",
        metavar="N",
        type=whole(),
        default=1,
        help="devices that share one copy of weights and moments (default: 1, a copy each)",
    )
    parser.add_argument(
        "--accumulate",
        metavar="N",
        type=whole(),
        default=1,
        help="parts that a device's images of a training step are cut into, one after the other (default: 1)",
    )
    parser.add_argument(
        "--remat",
        action="store_true",
        help="do not keep the activations of the network's blocks for the gradient, but compute them again",
    )
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="of activations and products; weights are float32 (default: bfloat16)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="have the compiler try less: half to a third of the time, memory of a program that is not the one to run, "
        "and its own estimate of a step's time where it gives one",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    return parser


def run(args: argparse.Namespace) -> int:
    """Compile and print; 1 where the program does not fit."""
    from ldmscale import tpu

    filters = args.filters or next(width for width, row in paper.TABLE_1.items() if row.name == args.model)
    tokens, width = paper.CONTEXT
    if not args.shapes:
        tpu.require()  # before JAX is imported
    from ldmscale.models.unet import UNetConfig
    from ldmscale.training import programs
    from ldmscale.training.sharding import device_mesh

    net = UNetConfig(filters, context_width=width, dtype=args.dtype, remat=args.remat)
    if args.shapes:
        print((_held_json if args.json else _held_text)(args, filters, programs.held(net, SHARES)))
        return 0
    mesh = device_mesh(tpu.topology(args.topology), args.fsdp)
    available = tpu.available_memory(mesh.devices.flat)
    if args.batch % args.accumulate:
        raise UserError(f"--accumulate {args.accumulate} does not divide --batch {args.batch}, a device's images")
    print(f"compiling for {_devices(mesh.size)} of {available / 2**30:.2f} GiB ...", file=sys.stderr, flush=True)
    sizes = (net, args.latent_size, tokens, args.batch, mesh)

    def lower() -> Lowered:
        return (
            programs.sampling(*sizes) if args.program == "sample" else programs.training_step(*sizes, args.accumulate)
        )

    found = tpu.footprint(lower, available, args.quick)
    passes = {"train": 3, "sample": 2}[args.program] * args.batch
    flops = passes * unet_flops(paper.paper_shape(filters, args.latent_size))
    print((_json if args.json else _text)(args, filters, mesh.size, found, flops))
    return 0 if found.fits else 1


def _sent(found: Footprint) -> str:
    if found.collectives is None:
        return "not told"
    said = [f"{sent.count} {kind} of {sent.size / 2**30:.3g} GiB" for kind, sent in found.collectives.items()]
    return ", ".join(said) or "nothing"


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def _name(args: argparse.Namespace) -> str:
    return args.model or f"filters {args.filters}"


def _held_json(args: argparse.Namespace, filters: int, found: list[Held]) -> str:
    rows = [
        {"fsdp": fsdp, "bytes_per_device": {"state": one.state, "gradients": one.gradients, "total": one.total}}
        for fsdp, one in zip(SHARES, found, strict=True)
    ]
    return json.dumps({"model": args.model, "filters": filters, "shares": rows}, indent=1)


def _held_text(args: argparse.Namespace, filters: int, found: list[Held]) -> str:
    def gib(size: int) -> str:
        return f"{size / 2**30:.2f}"

    rows = [["fsdp", "state", "gradients", "total, GiB a device"]]
    rows += [
        [str(fsdp), *map(gib, (one.state, one.gradients, one.total))] for fsdp, one in zip(SHARES, found, strict=True)
    ]
    return "\n".join(
        [
            f"{_name(args)}, training: what every device holds whatever the batch, where fsdp devices share one state",
            "",
            *aligned(rows),
            "",
            "Activations and gathered weights come on top, and a TPU pads small arrays: compile to know them.",
        ]
    )


def _json(args: argparse.Namespace, filters: int, devices: int, found: Footprint, flops: int) -> str:
    kinds = ("arguments", "outputs", "temporaries", "program", "total", "available")
    asked = {
        key: getattr(args, key)
        for key in ("topology", "program", "batch", "latent_size", "fsdp", "accumulate", "remat", "dtype", "quick")
    }
    return json.dumps(
        {
            "model": args.model,
            "filters": filters,
            **asked,
            "devices": devices,
            "bytes_per_device": {kind: getattr(found, kind) for kind in kinds},
            "fits": found.fits,
            "flops_per_device": flops,
            "estimated_seconds": found.seconds,
            "collectives": found.collectives
            and {kind: {"count": sent.count, "bytes": sent.size} for kind, sent in found.collectives.items()},
            "compile_seconds": found.compile_seconds,
        },
        indent=1,
    )


def _text(args: argparse.Namespace, filters: int, devices: int, found: Footprint, flops: int) -> str:
    def gib(size: int | None) -> str:
        return "not told" if size is None else f"{size / 2**30:.2f} GiB"

    side, name = args.latent_size, _name(args)
    cut = (f" in {args.accumulate} parts" if args.accumulate > 1 else "") + (", remat" if args.remat else "")
    verdict = "fits" if found.fits else "DOES NOT FIT"
    per = {"train": "a step: three forward passes", "sample": "a sampling step: two forward passes"}[args.program]
    estimate = "not given" if found.seconds is None else f"{found.seconds * 1e3:.1f} ms"
    rows = [
        ["arguments", gib(found.arguments)],
        ["outputs beside them", gib(found.outputs)],
        ["temporaries", gib(found.temporaries)],
        ["program", gib(found.program)],
        ["total", gib(found.total)],
        ["a device's memory", gib(found.available)],
    ]
    return "\n".join(
        [
            f"{name}, {PROGRAMS[args.program]}, on {args.topology}: {_devices(devices)}, "
            f"fsdp {args.fsdp}, batch {args.batch} a device{cut}, {side} x {side} latents, {args.dtype}",
            "",
            *aligned(rows),
            verdict,
            "",
            f"FLOPs of a device: {flops / 1e12:.3g} T {per}, counted",
            f"sent between devices: {_sent(found)}",
            f"time by the compiler's own estimate: {estimate}",
            f"tracing and compiling took {found.compile_seconds:.0f} s"
            + (", with the least effort: the program that is run has other temporaries" if args.quick else ""),
        ]
    )
