"""The CPU's own ways through single layers against the plain ones, which other devices take and XLA differentiates.

`python benchmarks/layers.py [--quick]`. One thread on one core: of many operations that wait for nothing XLA hands
some to another thread, whatever it was told. Each layer eight times in one program, with the shapes of the
embedded study's 32 filters in batches of 16 and of the paper's 39M in batches of 4. Samples are programs without
gradients, compiled as those are (`runtime.forward_options`).
"""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

from ldmscale.runtime import keep_memory, use_threads  # noqa: E402

use_threads(1)
keep_memory()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from measure import compared, header, in_turns  # noqa: E402

from ldmscale.models.attention import attend  # noqa: E402
from ldmscale.models.layers import conv2d, nearest_conv2d, product, traced_for  # noqa: E402
from ldmscale.models.norms import GroupNorm, LayerNorm  # noqa: E402
from ldmscale.runtime import forward_options  # noqa: E402


def norm(module):
    return lambda x, scale, bias: module.apply({"params": {"scale": scale, "bias": bias}}, x)


COPIES = 8  # of a layer in a program, so that calling it costs nothing
# What, the layer, the shapes of its arguments, what the plain way is.
LAYERS = (
    ("attention of 64 pixels, 2 heads of 16", lambda *a: attend(*a, 2), [(16, 64, 32)] * 3, "softmax"),
    ("attention of 256 pixels, 8 heads of 8", lambda *a: attend(*a, 8), [(4, 256, 64)] * 3, "softmax"),
    ("attention of 256 pixels over 77 tokens", lambda *a: attend(*a, 8), [(4, 256, 64), (4, 77, 64), (4, 77, 64)],
     "softmax"),
    ("upsampling 4 x 4 pixels, 64 channels", nearest_conv2d, [(16, 4, 4, 64), (3, 3, 64, 64)],
     "convolution of the doubled image"),
    ("upsampling 8 x 8 pixels, 128 channels", nearest_conv2d, [(4, 8, 8, 128), (3, 3, 128, 128)],
     "convolution of the doubled image"),
    ("3 x 3 convolution of 2 x 2 pixels, 128 channels", conv2d, [(16, 2, 2, 128), (3, 3, 128, 128)], "XLA's"),
    ("308 text states to 64 channels", product, [(308, 1024), (1024, 64)], "matmul"),
    ("group norm and SiLU of 8 x 8 pixels, 32 channels", norm(GroupNorm(8, 1e-5, silu=True)),
     [(16, 8, 8, 32), (32,), (32,)], "XLA's sums"),
    ("group norm and SiLU of 16 x 16 pixels, 64 channels", norm(GroupNorm(32, 1e-5, silu=True)),
     [(4, 16, 16, 64), (64,), (64,)], "XLA's sums"),
    ("group norm and SiLU of 32 x 32 pixels, 24 channels", norm(GroupNorm(8, 1e-6, silu=True)),
     [(16, 32, 32, 24), (24,), (24,)], "XLA's sums"),
    ("layer norm of 256 pixels, 64 channels", norm(LayerNorm()), [(4, 256, 64), (64,), (64,)], "XLA's sums"),
    ("64 pixels, 256 to 2048 channels", product, [(64, 256), (256, 2048)], "matmul"),
    ("patches of 2 x 2 pixels, 512 to 256 channels", product, [(16, 4608), (4608, 256)], "matmul"),
)  # fmt: skip


def program(layer, shapes, platform, gradient):
    """A call of it computes ``layer``, or its gradients, eight times."""
    draw = np.random.default_rng(0)
    arguments = [[0.3 * draw.standard_normal(shape, np.float32) for shape in shapes] for _ in range(COPIES)]

    def one(args):
        out, vjp = jax.vjp(layer, *args) if gradient else (layer(*args), None)
        return (out, vjp(out)) if gradient else out

    options = None if gradient else forward_options()
    with traced_for(platform):
        compiled = jax.jit(lambda every: [one(args) for args in every], compiler_options=options).lower(arguments)
    compiled, arguments = compiled.compile(), jax.device_put(arguments)
    return lambda: jax.block_until_ready(compiled(arguments))


def main(quick):
    print(header())
    for what, layer, shapes, plain in LAYERS:
        for gradient, kind in ((False, "sampling"), (True, "training")):
            pair = [program(layer, shapes, platform, gradient) for platform in ("cpu", "tpu")]
            for run in pair:
                run(), run()
            ours, theirs = in_turns(*pair, 10 if quick else 60)
            per_layer = [[1000 * seconds / COPIES for seconds in times] for times in (ours, theirs)]
            print(compared(f"{kind}: {what}", *per_layer, plain, unit="ms"), flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
