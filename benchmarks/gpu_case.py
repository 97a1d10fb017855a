"""One measurement of benchmarks/gpu.py, in a process of its own: what another left in memory does not count, and one
that needs more than there is takes nothing with it.

`python benchmarks/gpu_case.py CASE`, CASE the JSON of a :class:`Case`; the last line printed is JSON as well, of the
seconds and FLOPs of a call, peak memory and what it ran on. Random weights, bfloat16, text states of 77 x 1024 as in
the paper. Ours are the study's own programs; theirs is diffusers' U-Net through `torch.compile`, channels last, with
bfloat16 weights, or where it trains float32 weights, autocast, fused AdamW and its EMAModel. On a CPU it is not
compiled, which tries the code and measures nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import numpy as np

from ldmscale.cells.cost import UNetShape, unet_flops
from ldmscale.models.unet import UNetConfig
from ldmscale.runtime import use_threads

TEXT = 77, 1024
TRAIN_FLOPS = 3  # of a forward pass, in a training step: the gradients of inputs and of weights


@dataclass(frozen=True)
class Case:
    """``side``: ours | theirs; ``phase``: forward | train | sample (guided DDIM of ``steps``) | product (of matrices,
    for the rate that the card reaches); ``latent``: its side; ``rounds`` of ``calls`` are measured."""

    side: str
    phase: str
    filters: int
    batch: int
    latent: int = 64
    remat: bool = False
    steps: int = 20
    rounds: int = 5
    calls: int = 4

    @property
    def net(self) -> UNetConfig:
        return UNetConfig(self.filters, context_width=TEXT[1], dtype="bfloat16", remat=self.remat)

    @property
    def flops(self) -> int:
        """FLOPs of a call, of the network's definition: nothing that is computed again counts."""
        if self.phase == "product":
            return 2 * self.filters**3
        net = self.net
        levels = net.channel_mult, net.blocks_per_level, net.attention_levels
        shape = UNetShape(net.filters, *levels, self.latent, net.in_channels, TEXT)
        evaluations = {"forward": 1, "train": TRAIN_FLOPS, "sample": 2 * self.steps}[self.phase]
        return self.batch * evaluations * unet_flops(shape)


def ours(case: Case) -> tuple[Callable[[], object], Callable[[object], object]]:
    """What a call runs, and what waits for its result."""
    import jax
    import jax.numpy as jnp

    from ldmscale.cells.cell import Cell
    from ldmscale.data.encoded import Latents
    from ldmscale.diffusion.schedule import Schedule
    from ldmscale.generation.cells import Generator
    from ldmscale.generation.draws import Draws
    from ldmscale.models.network import network
    from ldmscale.tasks.pretrain import PretrainTask
    from ldmscale.training.loop import TrainConfig, build_step, initial_state
    from ldmscale.training.weights import parameter_shapes

    draw, net, batch = np.random.default_rng(0), case.net, case.batch
    if case.phase == "product":
        x = jnp.asarray(draw.standard_normal((case.filters, case.filters)), jnp.bfloat16)
        multiply = jax.jit(jnp.matmul)
        return lambda: multiply(x, x), jax.block_until_ready

    z = draw.standard_normal((batch, case.latent, case.latent, net.in_channels), np.float32)
    states = draw.standard_normal((batch, *TEXT), np.float32)
    if case.phase == "train":
        data = Latents(z, 0 * z, states, np.arange(batch + 1), states[0], 1.0)
        task = PretrainTask(net, Schedule(), data, batch, 0.1, 0)
        config = TrainConfig(1000, 1e-4, 10, 0.01, seed=0, ema=0.999)
        state, examples = jax.jit(lambda: initial_state(task, config))(), jax.device_put(task.batch(0))
        step = build_step(task, config)

        def train():
            nonlocal state
            state, found = step(state, examples)
            return found

        return train, jax.block_until_ready

    weights = jax.tree.map(lambda x: 0.02 * draw.standard_normal(x.shape, np.float32), parameter_shapes(net))
    if case.phase == "forward":
        given = jax.device_put((weights, z, np.full(batch, 500, np.int32), states))
        apply = jax.jit(lambda params, *rest: network(net).apply({"params": params}, *rest))
        return lambda: apply(*given), jax.block_until_ready
    generator = Generator(net, Schedule(), case.latent, batch, 0)
    draws = Draws(states, np.zeros_like(states[0]), np.arange(batch), [""] * batch)
    cell = Cell("t2i", "", "", "ddim", case.steps, 7.5)
    return lambda: generator.latents(weights, cell, "leading", draws), lambda found: found


def theirs(case: Case) -> tuple[Callable[[], object], Callable[[object], object]]:
    """The same."""
    import torch

    from ldmscale.diffusion.schedule import Schedule
    from ldmscale.metrics.torch_guard import guard_torchvision
    from ldmscale.models.unet_weights import diffusers_config

    guard_torchvision()
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from diffusers.training_utils import EMAModel

    cuda = torch.cuda.is_available()
    device, batch = torch.device("cuda" if cuda else "cpu"), case.batch
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True

    def wait(found):
        if cuda:
            torch.cuda.synchronize()
        return found

    model = UNet2DConditionModel.from_config(diffusers_config(case.net, case.latent))
    model = model.to(device, memory_format=torch.channels_last)
    z = torch.randn(batch, case.net.in_channels, case.latent, case.latent, device=device)
    z, states = z.contiguous(memory_format=torch.channels_last), torch.randn(batch, *TEXT, device=device)

    if case.phase == "train":
        compiled = torch.compile(model.train()) if cuda else model.train()
        adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
        averaged = EMAModel(model.parameters(), 0.999, foreach=True)
        alphas = torch.tensor(Schedule().alphas_cumprod, dtype=torch.float32, device=device)

        def train():
            t, noise = torch.randint(0, len(alphas), (batch,), device=device), torch.randn_like(z)
            alpha = alphas[t][:, None, None, None]
            with torch.autocast(device.type, torch.bfloat16):
                found = compiled(alpha.sqrt() * z + (1 - alpha).sqrt() * noise, t, states).sample
            torch.nn.functional.mse_loss(found.float(), noise).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            averaged.step(model.parameters())

        return train, wait

    model = model.to(torch.bfloat16).eval()
    # CUDA graphs, diffusers' own advice for inference.
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True) if cuda else model
    z, states = z.to(torch.bfloat16), states.to(torch.bfloat16)
    if case.phase == "forward":
        t = torch.full((batch,), 500, device=device)
        return torch.no_grad()(lambda: compiled(z, t, states).sample), wait

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(case.steps, device=device)
    both = torch.cat([torch.zeros_like(states), states])

    @torch.no_grad()
    def sample():
        x = z
        for t in scheduler.timesteps:
            doubled = torch.cat([x, x]).contiguous(memory_format=torch.channels_last)
            null, conditional = compiled(doubled, t, both).sample.chunk(2)
            x = scheduler.step(null + 7.5 * (conditional - null), t, x).prev_sample
        return x

    return sample, wait


def measured(case: Case) -> list[float]:
    """Seconds of a call, of each round."""
    call, wait = {"ours": ours, "theirs": theirs}[case.side](case)
    for _ in range(3):  # compiled, graphs recorded, everything allocated
        wait(call())
    found = []
    for _ in range(case.rounds):
        began = time.perf_counter()
        for _ in range(case.calls):
            result = call()
        wait(result)
        found.append((time.perf_counter() - began) / case.calls)
    return found


def machine(side: str) -> dict[str, object]:
    """What it ran on, and the most memory that it took there (None where that is not said)."""
    if side == "ours":
        import jax

        device = jax.devices()[0]
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return {"device": device.device_kind, "peak_bytes": peak, "software": {"jax": version("jax")}}
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "software": {"torch": torch.__version__, "diffusers": version("diffusers")},
    }


if __name__ == "__main__":
    case = Case(**json.loads(sys.argv[1]))
    use_threads(os.cpu_count() or 1)
    seconds = measured(case)
    print(json.dumps({"seconds": seconds, "flops": case.flops, **machine(case.side)}))
