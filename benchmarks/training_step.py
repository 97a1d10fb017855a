"""The U-Net's training step against diffusers' U-Net in PyTorch: same architecture, batch, float32, AdamW, threads.

`python benchmarks/training_step.py [--quick] [--no-average]`. Ours is the step that `make study` compiles: noising,
loss, clipping, AdamW, the average of the weights. Beside it diffusers' UNet2DConditionModel, eager in channels-last
memory format, with noising, MSE, clipping, fused AdamW and diffusers' EMAModel: the study scores averaged weights, so a
loop without it would not do the same (`--no-average` leaves it out there, not here). Three sizes of the embedded study,
and the paper's 39M.
"""

import os
import sys

THREADS = 2
if "GLIBC_TUNABLES" not in os.environ:  # for both, as rules/common.smk gives it to every job; read as a process starts
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.argv])
os.environ.update(OMP_NUM_THREADS=str(THREADS))  # PyTorch's own way of waiting: told to sleep it takes twice as long

from ldmscale.runtime import keep_memory, use_threads  # noqa: E402

use_threads(THREADS)
keep_memory()  # for both, as every training job does

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from measure import compared, header, in_turns  # noqa: E402

from ldmscale.config.read import read_study  # noqa: E402
from ldmscale.data.encoded import Latents  # noqa: E402
from ldmscale.diffusion.schedule import Schedule  # noqa: E402
from ldmscale.metrics.torch_guard import guard_torchvision  # noqa: E402
from ldmscale.models.unet import UNetConfig  # noqa: E402
from ldmscale.models.unet_weights import diffusers_config  # noqa: E402
from ldmscale.tasks.pretrain import PretrainTask  # noqa: E402
from ldmscale.training.loop import TrainConfig, build_step, initial_state  # noqa: E402

guard_torchvision()
from diffusers import UNet2DConditionModel  # noqa: E402
from diffusers.training_utils import EMAModel  # noqa: E402

RATE, DECAY, AVERAGED, IMAGES = 1e-4, 0.01, 0.999, 64
DRAWING = {"xla_backend_optimization_level": 0}


def ours(net, data, batch):
    """A call of it is a step."""
    task = PretrainTask(net, Schedule(), data, batch, 0.1, 0)
    config = TrainConfig(1000, RATE, 10, DECAY, seed=0, ema=AVERAGED)
    state = jax.jit(lambda: initial_state(task, config), compiler_options=DRAWING)()
    step, examples = build_step(task, config), task.batch(0)

    def run():
        nonlocal state
        state, found = step(state, examples)
        jax.block_until_ready((state, found))

    return run


def theirs(net, data, batch, average):
    """A call of it is a step."""
    torch.set_num_threads(THREADS)
    size, schedule = data.mean.shape[1], torch.tensor(Schedule().alphas_cumprod, dtype=torch.float32)
    model = UNet2DConditionModel.from_config(diffusers_config(net, size)).train()
    model = model.to(memory_format=torch.channels_last)
    adamw = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    averaged = EMAModel(model.parameters(), AVERAGED, foreach=True) if average else None
    z = torch.from_numpy(data.mean[:batch]).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    states = torch.from_numpy(data.states[:batch])

    def run():
        t, noise = torch.randint(0, len(schedule), (batch,)), torch.randn_like(z)
        alpha = schedule[t][:, None, None, None]
        found = model(alpha.sqrt() * z + (1 - alpha).sqrt() * noise, t, states).sample
        torch.nn.functional.mse_loss(found, noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        if averaged:
            averaged.step(model.parameters())

    return run


def main(quick, average):
    study, draw = read_study([]), np.random.default_rng(0)
    text = study.text_params()
    embedded = [(f"{f} filters", UNetConfig(**study.network(f)), study.latent_size, study.config["pretrain"]["batch"],
                 (text["context_length"], text["width"])) for f in (8, 20, 32)]  # fmt: skip
    paper = [("39M", UNetConfig(64), 16, 4, (77, UNetConfig(64).context_width))]
    print(header())
    for name, net, size, batch, context in embedded + paper:
        mean = draw.standard_normal((IMAGES, size, size, net.in_channels), np.float32)
        states = draw.standard_normal((IMAGES, *context), np.float32)
        data = Latents(mean, 0 * mean, states, np.arange(IMAGES + 1), states[0], 1.0)
        pair = ours(net, data, batch), theirs(net, data, batch, average)
        for run in pair:
            run(), run()  # compiled, and everything allocated
        rounds = 5 if quick else 20
        times = in_turns(*pair, rounds)
        what = f"training step, {name}, batch {batch} of {size} x {size} x {net.in_channels}"
        beside = f"diffusers, PyTorch eager, channels last, {'' if average else 'no '}average of the weights"
        print(compared(what, *times, beside, batch, "images/s"), flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv[1:], "--no-average" not in sys.argv[1:])
