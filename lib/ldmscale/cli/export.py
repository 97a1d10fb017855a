"""``ldmscale export``: a model of the study as a folder that diffusers loads."""

from __future__ import annotations

import argparse
from typing import Any

from ldmscale.cli.options import command
from ldmscale.cli.sample import add_member, member

ABOUT = """\
Write a member of the study in this folder, with its autoencoder, text encoder, tokenizer and noise schedule, as a
folder of diffusers:

  from diffusers import StableDiffusionPipeline
  pipe = StableDiffusionPipeline.from_pretrained("DIR")
  pipe("a large red circle on a white background", num_inference_steps=20, guidance_scale=4).images[0]

It samples with DDIM as the study does. For the study's DPM-Solver++ 2M:

  from diffusers import DPMSolverMultistepScheduler
  pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")

`ldmscale sample --pipeline DIR` samples from the folder too, and a study takes DIR/unet as a model's `weights`."""
EXAMPLE = """\
  ldmscale export --model f32 f32-diffusers
  ldmscale export --model f12 --config configs/emoji.yaml --weights pretrain-375 early-f12"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = command(commands, "export", "a model of the study as a folder that diffusers loads", ABOUT, EXAMPLE)
    parser.add_argument("--model", metavar="NAME", required=True, help="member of the study, such as f32")
    add_member(parser, files=1)  # one each: what follows is DIR
    parser.add_argument("folder", metavar="DIR", help="a new or empty folder")
    return parser


def run(args: argparse.Namespace) -> None:
    """Write."""
    pipeline, _ = member(args)
    from ldmscale.generation.export import export

    export(pipeline, args.folder)
    print(f"{args.folder}: {pipeline.origin['model']}, {pipeline.origin['weights']}, for diffusers")
