"""Layers that the U-Net and the autoencoder share: products, convolution, norms, resnet block, resampling.

Activations are NHWC, float32 or bfloat16: parameters are float32, products run in the type of the activations, and
norms and softmax in float32. Submodule and parameter names follow Hugging Face diffusers with list indices joined by
an underscore (``down_blocks.0.resnets.1.norm1.weight`` is ``down_blocks_0/resnets_1/norm1/scale``), so that importing
published weights is a rename and a transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

Padding = tuple[tuple[int, int], tuple[int, int]]
SAME: Padding = ((1, 1), (1, 1))
ZERO_PADDING: Padding = ((0, 0), (0, 0))
# PyTorch's default, so Stable Diffusion's own start: uniform within +-1/sqrt(fan_in). It also compiles in a fifth of
# the time that a truncated normal takes for hundreds of tensors.
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
WHOLE = 2**14  # weights of a kernel's tap up to which four of them are copied into a matrix, for planes of 2 x 2

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def backend() -> str:
    """Platform that programs traced now will run on: "cpu", "gpu" or "tpu"."""
    return _platform.get() or jax.default_backend()


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """What is traced inside takes the routes for ``platform``, whatever it is traced on."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def _im2col_is_faster(height: int, width: int, stride: int) -> bool:
    # XLA:CPU runs a scalar loop (2 to 9 GFLOP/s) for 3x3 convolutions of planes under 3 pixels and for the input
    # gradient of a stride-2 convolution from 4 pixels or fewer; patches and one matrix product run at 100 and more.
    if backend() != "cpu":
        return False
    return min(height, width) < 3 or (stride == 2 and height <= 4)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``x`` [...,Cin] times ``kernel`` [Cin,Cout], as a product of matrices: for a kernel's gradient that sums over
    several axes XLA writes both factors transposed to memory first."""
    rows = x.reshape(-1, x.shape[-1])
    y = _cpu_product(rows, kernel) if backend() == "cpu" else rows @ kernel
    return y.reshape(*x.shape[:-1], kernel.shape[1])


@jax.custom_vjp
def _cpu_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``x`` [M,Cin] times ``kernel`` [Cin,Cout]. XLA:CPU's products copy the left factor into blocks, which takes as
    long as multiplying where it is the larger one: each gradient is written so that the smaller is on the left."""
    return x @ kernel


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(factors: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = factors
    rows, (inputs, outputs) = len(x), kernel.shape
    few = rows <= 64 and inputs >= 80 and outputs >= 96
    narrow = rows >= 256 and inputs >= 2 * outputs
    return (
        _as_written(kernel @ _as_written(g.T)).T if few else g @ kernel.T,
        _as_written(_as_written(g.T) @ x).T if narrow else x.T @ g,
    )


# XLA would turn a product of transposed factors back into the one that it came from.
_as_written = jax.lax.optimization_barrier
_cpu_product.defvjp(_product_forward, _product_backward)


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = SAME) -> jax.Array:
    """Cross-correlate ``x`` [B,H,W,Cin] with ``kernel`` [k,k,Cin,Cout]; zero padding, square stride."""
    size, _, width_in, width_out = kernel.shape
    if size == 1 and stride == 1:
        return product(x, kernel[0, 0])
    if not _im2col_is_faster(x.shape[1], x.shape[2], stride):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    if size == 3 and stride == 1 and padding == SAME and max(x.shape[1:3]) < 3 and width_in * width_out <= WHOLE:
        return _whole_plane(x, kernel)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows = (x.shape[1] - size) // stride + 1
    columns = (x.shape[2] - size) // stride + 1
    patches = [
        x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    return product(jnp.concatenate(patches, axis=-1), kernel.reshape(size * size * width_in, width_out))


def _whole_plane(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """:func:`conv2d` of planes of at most 2 x 2, in which every pixel is every other's neighbour: one product of whole
    planes with a matrix of the kernel's weights, 16 blocks where patches have 36 with their zeros. The matrix is
    [rows and columns of the input, Cin, of the output, Cout]."""
    batch, height, width, width_in = x.shape
    rows = jnp.stack([kernel[1 - i : 1 - i + height] for i in range(height)])
    both = jnp.stack([rows[:, :, 1 - j : 1 - j + width] for j in range(width)])
    matrix = both.transpose(2, 3, 4, 1, 0, 5).reshape(height * width * width_in, -1)
    return product(x.reshape(batch, -1), matrix).reshape(batch, height, width, -1)


def nearest(x: jax.Array) -> jax.Array:
    """``x`` [B,H,W,C] in twice the height and width, each pixel four times."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def nearest_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """:func:`conv2d` of :func:`nearest` of ``x`` [B,H,W,Cin] with ``kernel`` [3,3,Cin,Cout], in the type of ``x``.

    Of three neighbours in the doubled image two are the same pixel of ``x``: on the CPU each of the four pixels that
    come of one is a convolution of 2 x 2 with the sums of the kernel's weights, 16 products where there were 36.
    """
    if backend() != "cpu":
        return conv2d(nearest(x), kernel.astype(x.dtype))
    batch, height, width, _ = x.shape
    parts = [
        jax.lax.conv_general_dilated(
            x, part.astype(x.dtype), (1, 1), ((1 - i, i), (1 - j, j)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        for i, rows in enumerate(_halves(kernel, 0))
        for j, part in enumerate(_halves(rows, 1))
    ]
    y = jnp.stack(parts, 3).reshape(batch, height, width, 2, 2, -1)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)


def _halves(kernel: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The kernels, two along ``axis`` and not three, of a doubled image's even and odd pixels."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return jnp.concatenate([first, middle + last], axis), jnp.concatenate([first + middle, last], axis)


def column_sums(x: jax.Array) -> jax.Array:
    """Sums [...,C] over the rows of ``x`` [...,N,C], as a product with ones: XLA:CPU's reduction takes up to twenty
    times as long, and it recomputes whatever it fuses with. There are two rows of ones because a product with one is a
    loop of XLA's own, which takes 25 ms to compile."""
    ones = jnp.ones((*x.shape[:-2], 2, x.shape[-2]), x.dtype)
    return (ones @ x)[..., 0, :]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def spread(row: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Broadcast ``row`` [C] to ``shape`` [...,C].

    The gradient is a sum over all rows, on the CPU :func:`column_sums`.
    """
    return jnp.broadcast_to(row, shape)


def _spread_forward(row: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, None]:
    return jnp.broadcast_to(row, shape), None


def _spread_backward(shape: tuple[int, ...], _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    rows = cotangent.reshape(-1, shape[-1])
    return (column_sums(rows) if backend() == "cpu" else rows.sum(0),)


spread.defvjp(_spread_forward, _spread_backward)


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
    """``module.param``, but where there is a value of ``shape`` without tracing ``init`` to know its own: a third
    of the time that tracing a network takes."""
    value = module.get_variable("params", name)
    return value if getattr(value, "shape", None) == shape else module.param(name, init, shape)


class Dense(nn.Module):
    """Linear layer on the last axis: ``kernel`` [Cin,Cout] and, with ``use_bias``, ``bias`` [Cout]."""

    channels: int
    use_bias: bool = True
    init: Callable = KERNEL_INIT

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = product(x, parameter(self, "kernel", self.init, (x.shape[-1], self.channels)).astype(x.dtype))
        if self.use_bias:
            y = y + spread(parameter(self, "bias", nn.initializers.zeros, (self.channels,)).astype(x.dtype), y.shape)
        return y


class Conv(nn.Module):
    """Convolution with bias; ``kernel`` [k,k,Cin,Cout], ``bias`` [Cout]. A zero-initialised one starts as silence;
    one of 3 x 3 may be of the ``doubled`` image (:func:`nearest`)."""

    channels: int
    size: int = 3
    stride: int = 1
    padding: Padding = SAME
    zero: bool = False
    doubled: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.zero else KERNEL_INIT
        kernel = parameter(self, "kernel", init, (self.size, self.size, x.shape[-1], self.channels))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.channels,))
        if self.doubled:
            y = nearest_conv2d(x, kernel)
        else:
            y = conv2d(x, kernel.astype(x.dtype), self.stride, self.padding if self.size > 1 else ZERO_PADDING)
        return y + spread(bias.astype(x.dtype), y.shape)
