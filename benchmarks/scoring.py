"""Frechet distance at 2048 dimensions against clean-fid's, of resamples too, and Inception's features a second.

`python benchmarks/scoring.py [--quick]`. Both distances take the same means and covariances on one thread of BLAS, as
the study's jobs run; on two threads of one core BLAS gains nothing. Resamples, in the study's size, are worked through
here on two threads. The networks have random weights and two threads.
"""

import os
import sys
import warnings
from itertools import chain

THREADS = 2
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS=str(THREADS))

from ldmscale.runtime import use_threads  # noqa: E402

use_threads(THREADS)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from measure import compared, header, in_turns  # noqa: E402

from ldmscale.metrics.bootstrap import fid_replicates, resample_counts  # noqa: E402
from ldmscale.metrics.frechet import Reference, frechet_distance, gaussian  # noqa: E402
from ldmscale.metrics.torch_guard import guard_torchvision  # noqa: E402
from ldmscale.models.inception import IMAGE_SIZE, InceptionV3  # noqa: E402

guard_torchvision()
from cleanfid import inception_pytorch  # noqa: E402
from cleanfid.fid import frechet_distance as cleanfids  # noqa: E402

DIMENSIONS, BATCH = 2048, 8
RESAMPLED, RESAMPLES = 64, 400  # dimensions, and how many
CASES = {  # images drawn, of how many different ones (None: all), real images
    "5,000 images, 5,000 real": (5000, None, 5000),
    "200 images, 5,000 real": (200, None, 5000),
    "200 images, 300 real": (200, None, 300),
    "2,500 images of 10 different ones, 5,000 real": (2500, 10, 5000),
}


def features(n, seed, shift=0.0, d=DIMENSIONS):
    """Features float32 [n,d] whose standard deviations fall thirtyfold, in directions that are the axes."""
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((n, d)) * np.geomspace(1, 0.03, d) + shift).astype(np.float32)


def distances(rounds):
    for name, (n, different, m) in CASES.items():
        mine, real = features(different or n, 0)[np.arange(n) % (different or n)], features(m, 1, 0.01)
        pair, found = (*gaussian(mine), *gaussian(real)), {}
        ours, theirs = in_turns(
            lambda pair=pair, found=found: found.update(ours=frechet_distance(*pair)),
            lambda pair=pair, found=found: found.update(theirs=cleanfids(*pair)),
            rounds,
        )
        cell = Reference(real).distance(mine)
        off = [abs(value / found["theirs"] - 1) for value in (found["ours"], cell)]
        notes = f"clean-fid's frechet_distance; differs by {max(off):.0e} of it"
        yield compared(f"Frechet distance, {name}", ours, theirs, notes)


def resamples(rounds):
    real = features(128, 1, 0.01, RESAMPLED)
    reference, found = Reference(real), {}
    for n in (55, 128):
        mine = features(n, 0, d=RESAMPLED)

        def ours(mine=mine):
            found["ours"] = fid_replicates(mine, reference, RESAMPLES, 0)

        def theirs(mine=mine, n=n):
            each = (gaussian(np.repeat(mine, counts, axis=0)) for counts in resample_counts(n, RESAMPLES, 0))
            found["theirs"] = np.array([cleanfids(*one, reference.mu, reference.sigma) for one in each])

        ours()
        times = in_turns(ours, theirs, rounds)
        off = np.abs(found["ours"] / found["theirs"] - 1).max()
        notes = f"clean-fid's frechet_distance of each; they differ by {off:.0e} at most; {THREADS} threads here"
        yield compared(f"{RESAMPLES} resamples of {n} images, {RESAMPLED} dimensions", *times, notes)


def inception(rounds):
    torch.set_num_threads(THREADS)
    inception_pytorch.load_state_dict_from_url = lambda url, progress: {}  # not the published weights: no network
    torch.nn.Module.load_state_dict, load = lambda self, state: None, torch.nn.Module.load_state_dict
    theirs = inception_pytorch.fid_inception_v3().eval()
    torch.nn.Module.load_state_dict = load
    images = np.random.default_rng(0).integers(0, 256, (BATCH, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    params = jax.jit(InceptionV3().init)(jax.random.key(0), images[:1])
    apply = jax.jit(InceptionV3().apply).lower(params, images).compile()
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for name, theirs_on in {
        "NCHW": tensor.contiguous(),
        "channels last": tensor.contiguous(memory_format=torch.channels_last),
    }.items():
        layout = torch.channels_last if name == "channels last" else torch.contiguous_format
        network = theirs.to(memory_format=layout)

        def run(network=network, theirs_on=theirs_on):
            with torch.inference_mode():
                network(theirs_on)

        run()
        jax.block_until_ready(apply(params, images))
        notes = f"clean-fid's pytorch-fid network in PyTorch, {name}; float32, batches of {BATCH}, {THREADS} threads"
        times = in_turns(lambda: jax.block_until_ready(apply(params, images)), run, rounds)
        yield compared("Inception features of 299 x 299 images", *times, notes, BATCH, "/s")


def main(quick):
    warnings.simplefilter("ignore")  # of SciPy about clean-fid's singular products
    print(header())
    few = 1 if quick else 3
    for row in chain(distances(few), resamples(few), inception(2 if quick else 7)):
        print(row, flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
