"""Scenes and degraded patches a second of one core, and the loader against a plain PyTorch DataLoader.

`python benchmarks/data.py [--quick]`. BasicSR and OpenCV are not among the requirements: the degradation is compared
with the same draws done by PyTorch's operators, as Real-ESRGAN's training code applies them (grouped 2-d convolution,
`interpolate`), on one thread; noise and JPEG are the same code in both.
"""

import os
import sys

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")

import tempfile  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402

import loader  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from measure import alone, compared, header, in_turns, seconds  # noqa: E402
from torch.nn import functional  # noqa: E402

from ldmscale.config.read import read_study  # noqa: E402
from ldmscale.data.degradation import operators, pipeline  # noqa: E402
from ldmscale.data.degradation.kernels import Kernel  # noqa: E402
from ldmscale.data.degradation.settings import PRESETS  # noqa: E402
from ldmscale.data.scenes import SceneSource  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
KERNEL = Kernel("aniso", 21, 3.0, 1.0, 0.5).weights()


def to_torch(image):
    return torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1)[None]


def torch_filter2d(image, kernel):
    """BasicSR's filter2D."""
    pad = len(kernel) // 2
    padded = functional.pad(to_torch(image), (pad,) * 4, mode="reflect")
    weights = torch.from_numpy(kernel.astype(np.float32)).expand(3, 1, *kernel.shape)
    return functional.conv2d(padded, weights, groups=3)[0].permute(1, 2, 0).numpy()


def torch_resize(image, size, mode, scale=None):
    found = functional.interpolate(to_torch(image), size=size, mode=mode)
    return found[0].permute(1, 2, 0).contiguous().numpy()


@contextmanager
def as_torch_does():
    """The pipeline with PyTorch's filter and resize."""
    kept = operators.filter2d, pipeline.filter2d, pipeline.resize
    operators.filter2d = pipeline.filter2d = torch_filter2d
    pipeline.resize = torch_resize
    try:
        yield
    finally:
        operators.filter2d, pipeline.filter2d, pipeline.resize = kept


def scenes(quick):
    count = 50 if quick else 300
    for size in (32, 256):
        source = SceneSource(size, count + 10, 1, 1)
        number = count if size == 32 else count // 5
        source.example("train", 0)  # its backgrounds are drawn once
        rate = number / seconds(
            lambda source=source, number=number: [source.example("train", i) for i in range(number)]
        )
        yield alone(f"Scenes of {size} x {size} pixels with captions, one core", f"{rate:.3g} /s", "drawn one by one")


def degraded(quick):
    count = 4 if quick else 16
    smooth = np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8)
    for size in (256, 512):
        image = torch_resize(smooth.transpose(1, 2, 0), (size, size), "bicubic").clip(0, 255).astype(np.uint8)

        def ours(image=image):
            return [pipeline.degrade(image, PRESETS["real-esrgan"], 0, i) for i in range(count)]

        def theirs(ours=ours):
            with as_torch_does():
                return ours()

        off = np.abs(operators.filter2d(image / 255, KERNEL) - torch_filter2d(image / 255, KERNEL)).max()
        assert off < 1e-5, off
        times = in_turns(ours, theirs, 2 if quick else 5)
        notes = "PyTorch's operators, the same draws, one thread"
        yield compared(f"Real-ESRGAN degradation of {size} x {size} patches, one core", *times, notes, count, "/s")


def loaded(quick):
    with tempfile.TemporaryDirectory() as folder:
        loader.write(Path(folder), read_study([REPO / "configs" / "paper.yaml"], REPO))
        for workers, ours, theirs in loader.serve(Path(folder), [0] if quick else [0, 1, 2], 3):
            notes = f"DataLoader over the same files; {workers or 'no'} threads here, worker processes there"
            ours, theirs = ([1 / rate for rate in rates] for rates in (ours, theirs))
            yield compared("Latents and text states of the paper's shapes", ours, theirs, notes, 1, "/s")


def main(quick):
    torch.set_num_threads(1)
    print(header())
    for part in (scenes, degraded, loaded):
        for row in part(quick):
            print(row, flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
