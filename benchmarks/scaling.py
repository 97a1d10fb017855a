"""What sharding saves and sends as devices are added, on CPU devices that one process simulates: bytes, collectives,
and whether training is the same. Nothing about speed, which a simulation cannot know.

`python benchmarks/scaling.py [FIGURE]` trains a small U-Net for five steps in each layout:
1, 2, 4 and 8 devices that hold a copy of the state each ("data") or share one ("fsdp"), with 16 images a step
(strong scaling) and with 4 images a device (weak scaling). It prints the table of docs/scale.md and draws FIGURE
(docs/figures/scaling.png).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from ldmscale.data.encoded import Latents
from ldmscale.diffusion.schedule import Schedule
from ldmscale.figures import style
from ldmscale.models.unet import UNetConfig
from ldmscale.tasks.pretrain import PretrainTask
from ldmscale.training.collectives import Traffic, collectives
from ldmscale.training.loop import TrainConfig, TrainState, build_step, initial_state
from ldmscale.training.sharding import batch_sharding, device_mesh, state_shardings
from ldmscale.training.weights import parameter_shapes

NET = UNetConfig(128, (1,), 1, (False,), heads=4, context_width=64)
SIZE, TOKENS, STEPS = 8, 16, 5  # of latents, of text states, of training
CONFIG = TrainConfig(1000, 1e-3, 10, 0.01, seed=0, ema=0.99, flat=False)
DEVICES = (1, 2, 4, 8)
STRONG, WEAK = 16, 4  # images a step; images a device
LAYOUTS = [*((n, fsdp) for n in DEVICES for fsdp in sorted({1, n})), (8, 4)]
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "scaling.png"


@dataclass(frozen=True)
class Run:
    """Training in one layout: bytes on each device, what a step sends, and the loss of every step."""

    devices: int
    fsdp: int
    batch: int
    state_bytes: int
    batch_bytes: int
    sent: dict[str, Traffic]
    losses: np.ndarray

    @property
    def sent_bytes(self) -> int:
        return sum(traffic.size for traffic in self.sent.values())

    def difference(self, one: Run) -> float:
        """The largest relative difference of a step's loss from that of ``one``."""
        return float(np.max(np.abs(self.losses / one.losses - 1)))


def pretraining(batch: int) -> PretrainTask:
    """The task: random latents and text states, the same for every ``batch``."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(64, SIZE, SIZE, NET.in_channels)).astype(np.float32)
    states = rng.normal(size=(64, TOKENS, NET.context_width)).astype(np.float32)
    data = Latents(mean=mean, std=0 * mean, states=states, first=np.arange(65), null=states[0], scale=1.0)
    return PretrainTask(NET, Schedule(), data, batch, text_dropout=0.1, seed=0)


def trained(initial: TrainState, devices: int, fsdp: int, batch: int) -> Run:
    """Train from ``initial`` on the first ``devices`` devices."""
    print(f"{devices // fsdp} x {fsdp} devices, {batch} images a step ...", file=sys.stderr, flush=True)
    task, mesh = pretraining(batch), device_mesh(jax.devices()[:devices], fsdp)
    places = state_shardings(initial, mesh)
    state = jax.device_put(initial, places)
    held = _on_one_device(state)
    step, losses = None, []
    for n in range(STEPS):
        examples = jax.device_put(task.batch(n), batch_sharding(mesh))
        if step is None:
            step = build_step(task, CONFIG, places, short=True).lower(state, examples).compile()
        state, measured = step(state, examples)
        losses.append(float(measured.loss))
    assert _on_one_device(state) == held, "the step moved the state"
    sent = collectives(step.as_text())
    return Run(devices, fsdp, batch, held, _on_one_device(examples), sent, np.array(losses))


def _on_one_device(tree: object) -> int:
    return sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(tree))


def table(runs: list[Run]) -> str:
    """The runs as Markdown."""
    one = next(run for run in runs if run.devices == 1 and run.batch == STRONG)

    def mib(size: int) -> str:
        return f"{size / 2**20:.2f}" if size < 2**20 else f"{size / 2**20:.1f}"

    lines = [
        "| devices | data x fsdp | images a step | state, MiB a device | batch, KiB a device | sent a step, MiB | in |"
        " loss, from one device |",
        "|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for run in runs:
        kinds = ", ".join(f"{sent.count} {kind}" for kind, sent in run.sent.items()) or "-"
        same = f"{run.difference(one):.1e}" if run.devices > 1 and run.batch == STRONG else "-"
        lines.append(
            f"| {run.devices} | {run.devices // run.fsdp} x {run.fsdp} | {run.batch} | {mib(run.state_bytes)} "
            f"| {run.batch_bytes / 2**10:.1f} | {mib(run.sent_bytes)} | {kinds} | {same} |"
        )
    return "\n".join(lines)


@style.styled
def drawn(runs: list[Run]) -> Figure:
    """State, batch, traffic and, of strong scaling, difference in loss against the number of devices."""
    colours = dict(zip(("data", "fsdp"), style.sequential("viridis", 2, 0.75, 0.15), strict=True))
    fig = style.new_figure(7.2, 5.0)
    (state, batch), (sent, same) = fig.subplots(2, 2)
    for name, colour in colours.items():
        for strong, look in ((True, {"marker": "o"}), (False, {"marker": "s", "linestyle": "--"})):
            mine = [
                run
                for run in runs
                if run.fsdp == (run.devices if name == "fsdp" else 1)
                and run.batch == (STRONG if strong else WEAK * run.devices)
            ]
            look = {**look, "color": colour, "label": f"{name}, {'strong' if strong else 'weak'}"}
            x, several = [run.devices for run in mine], [run for run in mine if run.devices > 1]
            many = [run.devices for run in several]
            if strong:
                state.plot(x, [run.state_bytes / 2**20 for run in mine], **{**look, "label": name})
            if name == "data":
                label = f"{STRONG} images a step" if strong else f"{WEAK} images a device"
                batch.plot(x, [run.batch_bytes / 2**10 for run in mine], **{**look, "color": style.INK, "label": label})
            sent.plot(many, [run.sent_bytes / 2**20 for run in several], **look)
            if strong:
                over = {} if name == "data" else {"linestyle": ":", "markersize": 2.5}  # the two are often equal
                millionths = [1e6 * run.difference(mine[0]) for run in several]
                same.plot(many, millionths, **{**look, **over, "label": name})
    whole = max(run.state_bytes for run in runs) / 2**20
    state.plot(DEVICES, [whole / n for n in DEVICES], ":", color=style.GREY, label="an equal part of one")
    same.axhline(1e6 * np.finfo(np.float32).eps, linestyle=":", color=style.GREY, label="float32's epsilon")
    titles = (
        "State, MiB a device",
        "Batch, KiB a device",
        "Sent a step, MiB a device",
        "Loss, millionths off one device's",
    )
    for ax, title in zip(fig.axes, titles, strict=True):
        lines = np.concatenate([line.get_ydata() for line in ax.lines])
        style.log_axis(ax, "x", DEVICES)
        ax.set_xticks(DEVICES, [str(n) for n in DEVICES])
        ax.set_xlabel("Devices")
        ax.set_title(title)
        if ax in (sent, same):
            ax.set_ylim(0, 1.15 * lines.max())
        else:
            style.log_axis(ax, "y", lines)
        ax.legend()
    params = sum(math.prod(x.shape) for x in jax.tree.leaves(parameter_shapes(NET)))
    style.add_caption(
        fig,
        f"A U-Net of {params / 1e6:.1f}M parameters, {STEPS} training steps on CPU devices simulated in one "
        f"process. data: every device has a copy of the state; fsdp: all share one. Strong: {STRONG} images a step; "
        f"weak: {WEAK} a device. Sent: the arrays of one step's collectives, each counted whole, in the program that "
        "the CPU's compiler makes. Arrays under 256 KiB are not cut. Speed cannot be simulated.",
    )
    return fig


def main() -> None:
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    path = Path(sys.argv[1]) if sys.argv[1:] else FIGURE
    fresh = partial(initial_state, pretraining(STRONG), CONFIG)
    initial = jax.device_get(jax.jit(fresh, compiler_options={"xla_backend_optimization_level": 0})())
    runs = [
        trained(initial, n, fsdp, batch)
        for n, fsdp in LAYOUTS
        for batch in sorted({STRONG, WEAK * n} if fsdp in (1, n) else {STRONG})
    ]
    print(table(runs))
    with style.style():
        drawn(runs).savefig(path, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
