"""What the parity tests share: the peers' packages, random weights in them, and the comparison."""

import warnings

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ldmscale.metrics.torch_guard import guard_torchvision  # noqa: E402

TOLERANCE = 1e-4  # of the output's scale, in float32


def peer(package: str):
    """The package, imported quietly; the test is skipped where it is not installed."""
    guard_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(package)


def randomise(module, seed: int) -> None:
    """Weights with a spread that keeps activations alive, norms away from the identity, biases and statistics too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() + 0.5)
            elif tensor.ndim >= 2:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            elif name.endswith("weight"):
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.add_(0.1 * noise)


def shapes(module, *args):
    """Shapes of our module's parameters, nothing allocated."""
    return jax.eval_shape(module.init, jax.random.key(0), *args)["params"]


def nchw(x: np.ndarray):
    """NHWC array -> NCHW tensor."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def error(ours, theirs) -> float:
    """Largest error of ``ours`` relative to the largest value of ``theirs`` (an NCHW tensor if of rank 4)."""
    theirs = theirs.detach().numpy()
    if theirs.ndim == 4:
        theirs = theirs.transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max()
    assert scale > 1e-3, "the peer's output is nearly zero: the comparison would show nothing"
    return float(np.abs(np.asarray(ours) - theirs).max() / scale)


def assert_close(ours, theirs) -> None:
    assert error(ours, theirs) <= TOLERANCE


def compiled(fn):
    """``fn`` compiled in a hurry: each network is run once, and compiling it well takes ten times as long."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(fn, compiler_options=options)
