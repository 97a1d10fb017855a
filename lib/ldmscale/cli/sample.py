"""``ldmscale sample``: images from a trained or published model, for any prompt."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmscale.cli.options import command, whole
from ldmscale.errors import UserError
from ldmscale.runtime import use_threads

if TYPE_CHECKING:
    from ldmscale.cells.cell import Cell
    from ldmscale.generation.pipeline import Pipeline

ABOUT = """\
Draw images of a model: a member of the study in this folder, trained or published, or any Stable Diffusion 1 or 2
folder of diffusers that predicts noise (epsilon).

Images are PNG files, 0000.png upwards, all of the first prompt first; each holds its prompt and settings as text.
Image n starts from the same noise whatever the prompt, model, sampler and batch, and from the noise of the study's
cells: its gallery's prompts in their order, with the study's seed, are its gallery."""
EXAMPLE = """\
  ldmscale sample --model f32 --prompt "a large red circle on a white background" --steps 20 --cfg 4 --out red
  ldmscale sample --model f12 --weights pretrain-200 --prompt "a small star" --count 16 --sampler dpmpp2m --out stars
  ldmscale sample --pipeline stable-diffusion-v1-5 --prompt "an astronaut" --steps 50 --cfg 7.5 --out astronaut"""
LARGEST_SEED = 2**32 - 1


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = command(commands, "sample", "images of a trained or published model for any prompt", ABOUT, EXAMPLE)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="NAME", help="member of the study, such as f32")
    which.add_argument("--pipeline", metavar="DIR", help="or a folder of diffusers (unet/, vae/, text_encoder/, ...)")
    add_member(parser)
    parser.add_argument(
        "--prompt", metavar="TEXT", action="append", required=True, help='repeat it for more; "" is no prompt'
    )
    parser.add_argument("--count", metavar="N", type=whole(), default=1, help="images a prompt (default: 1)")
    parser.add_argument("--sampler", metavar="NAME", default="ddim", help="ddim, ddpm, dpmpp2m or codi (default: ddim)")
    parser.add_argument("--steps", metavar="N", type=whole(), default=50, help="sampling steps (default: 50)")
    parser.add_argument(
        "--cfg", metavar="G", type=_guidance, default=7.5, help="guidance weight; 1: unguided (default: 7.5)"
    )
    parser.add_argument(
        "--spacing",
        metavar="NAME",
        help="of the timesteps: leading, trailing, linspace or grid (default: the study's, or the sampler's usual one)",
    )
    parser.add_argument("--seed", metavar="N", type=whole(0), help="of all noise (default: the study's; else 0)")
    parser.add_argument("--batch", metavar="N", type=whole(), default=8, help="images at a time, at most (default: 8)")
    parser.add_argument("--out", metavar="DIR", required=True, help="where the images go")
    return parser


def add_member(parser: argparse.ArgumentParser, files: int | str = "+") -> None:
    """Declare the arguments that, with ``--model``, choose a member of a study; one ``--config`` takes ``files``."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        nargs=files,
        action="extend",
        default=[],
        help="the study of ./config.yaml with these overlays, as by snakemake --configfile"
        + ("; repeat it for more" if files == 1 else ""),
    )
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="which of the model's: pretrain-1600, published, dreambooth_dog6-800, or final, the last (default: final)",
    )


def _guidance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 0")
    return value


def run(args: argparse.Namespace) -> None:
    """Draw and write."""
    if args.pipeline and (args.config or args.weights):
        raise UserError("--config and --weights choose a member of a study: use them with --model, not --pipeline")
    if args.seed is not None and args.seed > LARGEST_SEED:
        raise UserError(f"--seed is {args.seed}: it must be at most {LARGEST_SEED}")
    threads = len(os.sched_getaffinity(0))
    _, batch = _batches(len(args.prompt) * args.count, args.batch)
    use_threads(threads, math.gcd(threads, batch))
    pipeline, seed = member(args)
    seed = seed if args.seed is None else args.seed
    from ldmscale.cells.cell import Cell
    from ldmscale.diffusion.samplers import step_table

    # What the command line can be wrong in comes before the weights are read.
    spacing = args.spacing or pipeline.spacing.get(args.sampler)
    step_table(args.sampler, pipeline.schedule, args.steps, spacing)
    model, weights = (pipeline.origin.get(key, "-") for key in ("model", "weights"))
    cell = Cell("t2i", model, weights, args.sampler, args.steps, args.cfg)
    prompts = [_sound(prompt) for prompt in args.prompt for _ in range(args.count)]
    out = _folder(args.out, len(prompts))
    _draw(pipeline, prompts, cell, spacing, seed, args.batch, out)
    last = f" to {_name(len(prompts) - 1)}" if len(prompts) > 1 else ""
    print(f"{out}: {_name(0)}{last}")


def member(args: argparse.Namespace) -> tuple[Pipeline, int]:
    """What ``args`` choose, and the seed of its study (0 without one)."""
    if getattr(args, "pipeline", None):
        from ldmscale.generation.pipeline import of_folder

        return of_folder(args.pipeline), 0
    from ldmscale.config.read import read_study
    from ldmscale.jobs import COMPILE_CACHE
    from ldmscale.runtime import use_compile_cache

    study = read_study(args.config)
    use_compile_cache(os.environ.get("LDMSCALE_COMPILE_CACHE", COMPILE_CACHE))  # the study's
    from ldmscale.generation.pipeline import of_study

    return of_study(study, args.model, args.weights or "final", args.config), study.seed


def _sound(prompt: str) -> str:
    # An argument that is not UTF-8 comes with surrogates, which neither the tokenizer nor a PNG can hold.
    return prompt.encode("utf-8", "replace").decode("utf-8")


def _name(number: int) -> str:
    return f"{number:04d}.png"


def _folder(path: str, images: int) -> Path:
    out = Path(path)
    for number in range(images):
        if (out / _name(number)).exists():
            raise UserError(f"{out / _name(number)} is there already: give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made ({error.strerror}): give the path of a folder") from None
    return out


def _batches(images: int, most: int) -> tuple[int, int]:
    """How many batches, and of what size: of about one, to which the last is padded."""
    batches = -(-images // most)
    return batches, -(-images // batches)


def _draw(pipeline: Pipeline, prompts: list[str], cell: Cell, spacing: str, seed: int, most: int, out: Path) -> None:
    from ldmscale.generation.pipeline import draw

    batches, batch = _batches(len(prompts), most)
    common = {**pipeline.origin, "sampler": cell.sampler, "spacing": spacing, "steps": cell.steps, "cfg": cell.cfg,
              "seed": seed, "software": f"ldmscale {version('ldmscale')}"}  # fmt: skip
    who = " ".join(str(v) for k, v in pipeline.origin.items() if k in ("study", "model", "weights", "pipeline"))
    _say(f"{who}: images: {len(prompts)}, batches: {batches}; the first takes longer, for the programs are compiled")
    began = time.monotonic()
    for done, (numbers, images) in enumerate(draw(pipeline, prompts, cell, spacing, seed, batch), 1):
        for number, image in zip(numbers, images, strict=True):
            _save(out / _name(number), image, {"prompt": prompts[number], **common, "image": number})
        took, began = time.monotonic() - began, time.monotonic()
        about = "at most" if done == 1 else "about"  # the first was compiled for
        left = f"; {about} {_duration((batches - done) * took)} left" if done < batches else ""
        _say(f"batch {done} of {batches}: {_name(numbers[-1])} after {_duration(took)}{left}")


def _save(path: Path, image: Any, settings: dict[str, Any]) -> None:
    from PIL import Image, PngImagePlugin

    from ldmscale.provenance import atomic_path

    text = PngImagePlugin.PngInfo()
    for key, value in settings.items():
        text.add_text(key, f"{value:g}" if isinstance(value, float) else str(value))
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, pnginfo=text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
