"""``ldmscale preflight``: does a training step or the sampling program fit a TPU slice? Answered by compiling it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ldmscale.cells import paper
from ldmscale.cells.cost import unet_flops
from ldmscale.cli.options import aligned, command, whole

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.stages import Lowered

    from ldmscale.models.unet import UNetConfig
    from ldmscale.tpu import Footprint

ABOUT = """\
Compile the real training step (loss, gradients, AdamW, weight average), or the sampling program with guidance, for a
TPU slice that need not be there, and say what it takes of every device: memory by kind, whether that fits, FLOPs. No
TPU is used and no network is allocated; compiling takes minutes, and grows with the network.

The network is one of the paper's (arXiv 2404.01367), or one of its architecture at another width. Exit status: 0 if
the program fits, 1 if it does not. Needs the optional dependency `tpu` (libtpu)."""
EXAMPLE = """\
  ldmscale preflight --model 866M --topology v5e:4x4 --fsdp 16
  ldmscale preflight --model 39M --topology v5e:2x2 --program sample --batch 32 --latent-size 32"""
PROGRAMS = {"train": "training step", "sample": "sampling, guided"}


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = command(commands, "preflight", "does a program fit a TPU slice? (compiled, not run)", ABOUT, EXAMPLE)
    which = parser.add_mutually_exclusive_group(required=True)
    names = [row.name for row in paper.TABLE_1.values()]
    which.add_argument("--model", metavar="NAME", choices=names, help=f"one of the paper's U-Nets: {', '.join(names)}")
    which.add_argument("--filters", metavar="N", type=whole(), help="or its width, a multiple of 32")
    parser.add_argument(
        "--topology", metavar="SLICE", required=True, help="version and chips a side, as in v5e:4x4 or v5p:2x2x1"
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

    tpu.require()  # before JAX is imported
    from ldmscale.models.unet import UNetConfig
    from ldmscale.training.sharding import device_mesh

    filters = args.filters or next(width for width, row in paper.TABLE_1.items() if row.name == args.model)
    tokens, width = paper.CONTEXT
    net = UNetConfig(filters, context_width=width, dtype=args.dtype)
    mesh = device_mesh(tpu.topology(args.topology), args.fsdp)
    available = tpu.available_memory(mesh.devices.flat)
    print(f"compiling for {_devices(mesh.size)} of {available / 2**30:.2f} GiB ...", file=sys.stderr, flush=True)
    lower = {"train": training_step, "sample": sampling}[args.program]
    found = tpu.footprint(lambda: lower(net, args.latent_size, tokens, args.batch, mesh), available, args.quick)
    passes = {"train": 3, "sample": 2}[args.program] * args.batch
    flops = passes * unet_flops(paper.paper_shape(filters, args.latent_size))
    print((_json if args.json else _text)(args, filters, mesh.size, found, flops))
    return 0 if found.fits else 1


def training_step(net: UNetConfig, latent_size: int, tokens: int, batch: int, mesh: Mesh) -> Lowered:
    """The training loop's own step of pretraining ``net`` on ``mesh``, ``batch`` images a device, lowered."""
    from dataclasses import replace
    from functools import partial

    import jax
    import numpy as np

    from ldmscale.data.encoded import Latents
    from ldmscale.diffusion.schedule import Schedule
    from ldmscale.tasks.pretrain import PretrainTask
    from ldmscale.training.loop import TrainConfig, build_step, initial_state
    from ldmscale.training.sharding import batch_sharding, state_shardings

    # One image stands for the data: the step's shapes follow from it, its compiled form does not depend on values.
    moments = np.zeros((1, latent_size, latent_size, net.in_channels), np.float32)
    states = np.zeros((1, tokens, net.context_width), np.float32)
    latents = Latents(moments, moments, states, np.arange(2), states[0], 1.0)
    task = PretrainTask(net, Schedule(), latents, batch_size=batch * mesh.size, text_dropout=0.1, seed=0)
    config = TrainConfig(500_000, 1e-4, 10_000, 0.01, seed=0, ema=0.9999, flat=mesh.shape["fsdp"] == 1)
    state = jax.eval_shape(partial(initial_state, task, config))
    shardings = state_shardings(state, mesh)
    examples = {
        key: jax.ShapeDtypeStruct((task.batch_size, *value.shape[1:]), value.dtype, sharding=batch_sharding(mesh))
        for key, value in replace(task, batch_size=1).batch(0).items()
    }
    return build_step(task, config, shardings).lower(_placed(state, shardings), examples)


def sampling(net: UNetConfig, latent_size: int, tokens: int, batch: int, mesh: Mesh) -> Lowered:
    """The sampling program of ``net`` with guidance, any sampler and step count, on ``mesh``, lowered."""
    import jax
    import jax.numpy as jnp

    from ldmscale.diffusion.samplers import step_table
    from ldmscale.diffusion.sampling import build_sampler, device_table
    from ldmscale.diffusion.schedule import Schedule
    from ldmscale.models.network import network
    from ldmscale.training.sharding import batch_sharding, replicated, state_shardings
    from ldmscale.training.weights import parameter_shapes

    unet, images = network(net), batch * mesh.size
    params = parameter_shapes(net)
    table = jax.eval_shape(lambda: device_table(step_table("ddim", Schedule(), 50, "leading")))
    everywhere, cut = replicated(mesh), batch_sharding(mesh)

    def spec(shape: tuple[int, ...], sharding: Any, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    sample = build_sampler(lambda params, z, t, context: unet.apply({"params": params}, z, t, context))
    return jax.jit(sample, out_shardings=cut).lower(
        _placed(params, state_shardings(params, mesh)),
        _placed(table, jax.tree.map(lambda _: everywhere, table)),
        spec((), everywhere),
        spec((images, latent_size, latent_size, net.in_channels), cut),
        spec((images, tokens, net.context_width), cut),
        spec((tokens, net.context_width), everywhere),
        spec((images,), cut, jax.random.key(0).dtype),
    )


def _placed(tree: Any, shardings: Any) -> Any:
    import jax

    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def _json(args: argparse.Namespace, filters: int, devices: int, found: Footprint, flops: int) -> str:
    kinds = ("arguments", "outputs", "temporaries", "program", "total", "available")
    asked = {
        key: getattr(args, key) for key in ("topology", "program", "batch", "latent_size", "fsdp", "dtype", "quick")
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
            "compile_seconds": found.compile_seconds,
        },
        indent=1,
    )


def _text(args: argparse.Namespace, filters: int, devices: int, found: Footprint, flops: int) -> str:
    def gib(size: int | None) -> str:
        return "not told" if size is None else f"{size / 2**30:.2f} GiB"

    side, name = args.latent_size, args.model or f"filters {filters}"
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
            f"fsdp {args.fsdp}, batch {args.batch} a device, {side} x {side} latents, {args.dtype}",
            "",
            *aligned(rows),
            verdict,
            "",
            f"FLOPs of a device: {flops / 1e12:.3g} T {per}, counted",
            f"time by the compiler's own estimate: {estimate}",
            f"tracing and compiling took {found.compile_seconds:.0f} s"
            + (", with the least effort: the program that is run has other temporaries" if args.quick else ""),
        ]
    )
