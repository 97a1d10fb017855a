"""Guided sampling, decoded, against diffusers' StableDiffusionPipeline with the same networks, scheduler and threads.

`python benchmarks/sampling.py [--quick]`. A cell of 20 DDIM steps at guidance 4 from text states to uint8 images, by
the programs that draw the study's cells in a job of two threads; beside it diffusers' pipeline, given the same text
states. Random weights.
"""

import os
import sys

THREADS = 2
os.environ.update(OMP_NUM_THREADS=str(THREADS))  # PyTorch's own way of waiting: told to sleep it takes twice as long

from ldmscale.runtime import use_threads  # noqa: E402

use_threads(THREADS, devices=THREADS)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from measure import compared, header, in_turns  # noqa: E402

from ldmscale.cells.cell import Cell  # noqa: E402
from ldmscale.config.read import read_study  # noqa: E402
from ldmscale.diffusion.schedule import Schedule  # noqa: E402
from ldmscale.generation.cells import Generator  # noqa: E402
from ldmscale.generation.draws import Draws  # noqa: E402
from ldmscale.generation.encode import Encoders  # noqa: E402
from ldmscale.metrics.torch_guard import guard_torchvision  # noqa: E402
from ldmscale.models import autoencoder_weights, unet_weights  # noqa: E402
from ldmscale.models.autoencoder import AutoencoderConfig  # noqa: E402
from ldmscale.models.unet import UNetConfig  # noqa: E402
from ldmscale.training.weights import parameter_shapes  # noqa: E402

guard_torchvision()
import diffusers  # noqa: E402

STEPS, GUIDANCE = 20, 4.0


def ours(net, ae, states, size):
    """A call of it makes an image of every row of ``states``."""
    draw, batch = np.random.default_rng(0), len(states)

    def random(config):
        return jax.tree.map(lambda x: 0.02 * draw.standard_normal(x.shape, np.float32), parameter_shapes(config))

    generator, encoders = Generator(net, Schedule(), size, batch, 0), Encoders(ae, batch=batch)
    weights, decoder = random(net), random(ae)
    draws = Draws(states, np.zeros_like(states[0]), np.arange(batch), [""] * batch)
    cell = Cell("t2i", "", "", "ddim", STEPS, GUIDANCE)
    return lambda: encoders.decode(decoder, generator.latents(weights, cell, "leading", draws))


def theirs(net, ae, states, size):
    """The same."""
    torch.set_num_threads(THREADS)
    unet = diffusers.UNet2DConditionModel.from_config(unet_weights.diffusers_config(net, size))
    vae = diffusers.AutoencoderKL.from_config(autoencoder_weights.diffusers_config(ae, size * ae.factor, 1.0))
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    prompts = torch.from_numpy(states)
    return lambda: pipe(
        prompt_embeds=prompts, negative_prompt_embeds=torch.zeros_like(prompts), num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, height=size * ae.factor, width=size * ae.factor, output_type="pil",
    )  # fmt: skip


def main(quick):
    study, draw = read_study([]), np.random.default_rng(0)
    text, batch = study.text_params(), study.config["sampling"]["batch"]
    small = AutoencoderConfig(**study.autoencoder_params())
    cases = [(f"{f} filters", UNetConfig(**study.network(f)), small, study.latent_size, batch,
              (text["context_length"], text["width"])) for f in (8, 20, 32)]  # fmt: skip
    cases.append(("39M", UNetConfig(64), AutoencoderConfig(), 16, 2, (77, UNetConfig(64).context_width)))
    print(header())
    for name, net, ae, size, count, context in cases:
        states = draw.standard_normal((count, *context), np.float32)
        pair = ours(net, ae, states, size), theirs(net, ae, states, size)
        for run in pair:
            run()
        times = in_turns(*pair, 2 if quick else 5)
        what = f"{STEPS} guided DDIM steps and decoding, {name}, {count} images of {size * ae.factor} pixels"
        print(
            compared(what, *times, "diffusers' StableDiffusionPipeline, channels last", count, "images/s"), flush=True
        )


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
