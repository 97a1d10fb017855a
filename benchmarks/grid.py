"""Many cells in one warm process against one process a cell, which imports, compiles, samples and scores.

`python benchmarks/grid.py [--quick] [--cells N] [--threads N] [--model NAME] [--config OVERLAY ...]`, by default 200
cells of config.yaml's f8 (samplers, steps and guidance weights; random weights, the study's numbers of prompts), every
process with two threads, which are two devices. The plain way is measured on three processes, at the least, the middle
and the most work of the 200, and their mean taken 200 times: without a cache of compiled programs, and with one that
the warm process has filled (it began with none). Sampling is the time in the sampling program less compilation; what
the warm way spends beside it is divided into start, compilation, decoding with writing, and scoring.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

BEGAN = time.time()

from itertools import product  # noqa: E402
from pathlib import Path  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
STEPS, WEIGHTS = (2, 3, 4, 5, 6, 8, 10, 12), (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 11.0)
SAMPLERS = ("ddim", "ddpm", "dpmpp2m")


def cells(count):
    """``count`` settings (sampler, steps, cfg), the least work first, evenly of all."""
    every = sorted(product(SAMPLERS, STEPS, WEIGHTS), key=lambda cell: cell[1] * (1 if cell[2] == 1 else 2))
    return [every[i * len(every) // count] for i in range(count)]


def run(todo, model, configs, threads, folder):
    """Generate and score ``todo`` in this process -> seconds of each part."""
    from ldmscale.runtime import use_threads

    use_threads(threads, devices=threads)
    import jax
    import numpy as np
    from listen.sitecustomize import Outermost

    from ldmscale.cells.cell import Cell
    from ldmscale.config.read import read_study
    from ldmscale.data.encoded import save_array
    from ldmscale.diffusion.schedule import Schedule
    from ldmscale.generation.cells import Generator, generate
    from ldmscale.generation.draws import Draws
    from ldmscale.generation.encode import Encoders
    from ldmscale.metrics.features import study_features
    from ldmscale.metrics.real import Real
    from ldmscale.metrics.score import SPLITS, Scorer, score
    from ldmscale.models.autoencoder import AutoencoderConfig
    from ldmscale.models.clip import CLIPConfig
    from ldmscale.models.network import net_config
    from ldmscale.training.weights import parameter_shapes

    compiling, sampling = Outermost(), []
    jax.monitoring.register_event_duration_secs_listener(compiling)
    draw, study = np.random.default_rng(0), read_study([Path(c) for c in configs], REPO)
    net, ae = net_config(study.net_params(model)), AutoencoderConfig(**study.autoencoder_params())
    clip, config = CLIPConfig(**study.clip_params()), study.config
    counts, text = {split: config["data"]["counts"][split] for split in SPLITS}, study.text_params()

    def random(shapes):
        return jax.tree.map(lambda leaf: 0.02 * draw.standard_normal(leaf.shape, np.float32), shapes)

    weights, ae_weights, clip_weights = (random(parameter_shapes(c)) for c in (net, ae, clip))
    splits = [s for s, n in {"gallery": len(config["gallery"]), **counts}.items() for _ in range(n)]
    states = draw.standard_normal((len(splits), text["context_length"], text["width"]), np.float32)
    draws = Draws(states, states[0], np.arange(len(splits)), splits)
    batch, size = config["sampling"]["batch"], config["data"]["image_size"]
    generator = Generator(net, Schedule(**config["diffusion"]), study.latent_size, batch, 0)
    encoders = Encoders(ae, batch=batch)
    latents = generator.latents

    def timed(*arguments):
        began, compiled = time.perf_counter(), compiling.seconds
        z = latents(*arguments)
        sampling.append(time.perf_counter() - began - (compiling.seconds - compiled))
        return np.clip(np.nan_to_num(z), -3, 3)  # random weights need not end anywhere

    generator.latents = timed
    paths = [Cell("t2i", model, "pretrain-0", *cell).path for cell in todo]
    specs = [{"path": path, "spacing": config["sampling"]["spacing"][sampler], "draws": {}, "digest": path,
              "score_digest": path} for path, (sampler, _, _) in zip(paths, todo, strict=True)]  # fmt: skip
    before, starting = time.time(), compiling.seconds
    generate(specs, folder, generator, lambda cell: draws, lambda cell: weights,
             lambda z: encoders.decode(ae_weights, z), lambda line: None)  # fmt: skip
    made, generating = time.time(), compiling.seconds
    features, label = study_features(clip, clip_weights, "clip", None)
    real, embeddings = {}, {}
    for split, count in counts.items():
        images = draw.integers(0, 256, (count, size, size, 3), np.uint8)
        real[split] = Real(*features(images))
        embeddings[split] = draw.standard_normal((count, clip.embed_dim), np.float32)
    ends = np.zeros((0, 2, clip.embed_dim), np.float32)
    scorer = Scorer(features, label, label, real, embeddings, ends, [], config["metrics"]["replicates"], 0)
    rows = score(specs, folder, lambda cell, path: scorer.rows("t2i", path), True, lambda line: None)
    assert len(rows) == 2 * len(todo)
    save_array(folder / "done.npy", np.zeros(1))
    ended = time.time()
    return {
        "start": before - BEGAN - starting,
        "compile": compiling.seconds,
        "sample": sum(sampling),
        "decode and write": made - before - (generating - starting) - sum(sampling),
        "score": ended - made - (compiling.seconds - generating),
        "whole": ended - BEGAN,
    }


def process(todo, options, cache=None):
    """Wall seconds of a process that does ``todo``, and what it says."""
    environment = {**os.environ, "PYTHONPATH": str(REPO / "lib")}
    if cache:
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        what = json.dumps([todo, options.model, options.config, options.threads, folder])
        command = [sys.executable, __file__, "--one", what]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        wall = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr)
    return wall, json.loads(done.stdout.splitlines()[-1])


def main(options):
    from measure import alone, compared, header

    count = options.cells
    todo = cells(count)
    few = [todo[i] for i in ([count // 2] if options.quick else [0, count // 2, count - 1])]
    with tempfile.TemporaryDirectory() as cache:
        ours, parts = process(todo, options, cache)
        plain = {
            "without a compile cache": [process([cell], options)[0] for cell in few],
            "with a compile cache": [process([cell], options, cache)[0] for cell in few],
        }
    print(header())
    having = f"{options.threads} thread" + "s" * (options.threads != 1)
    what = f"{count} cells of {options.model}, generated and scored, {having}"
    for name, each in plain.items():
        notes = f"a process a cell, {name}: {len(few)} measured, {min(each):.1f} to {max(each):.1f} s, mean x {count}"
        theirs = sum(each) / len(each) * count
        print(compared(what, [ours], [theirs], notes))
    beyond = 100 * (parts["whole"] / (parts["sample"] + parts["decode and write"]) - 1)
    shares = ", ".join(f"{part} {parts[part]:.1f} s" for part in parts)
    print(alone(f"Overhead beyond sampling and decoding in the warm process, {having}", f"{beyond:.0f} %", shares))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        *what, place = json.loads(sys.argv[2])
        print(json.dumps(run(*what, Path(place))))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="one process of the plain way instead of three")
        parser.add_argument("--cells", type=int, default=200)
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--model", default="f8")
        parser.add_argument("--config", nargs="*", default=[])
        main(parser.parse_args())
