"""Exact costs of a network from its traced program: parameters, and floating-point operations as 2 per multiply-add.

Nothing is allocated or compiled, so the 5B model costs seconds. Only matrix products and convolutions count, as in the
field's (and the paper's) GFLOPS; element-wise work does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from ldmscale.models.adapter import adapter
from ldmscale.models.layers import traced_for
from ldmscale.models.network import NetConfig, inputs, network


@dataclass(frozen=True)
class Cost:
    """``params``: number of parameters; ``flops``: 2*MAC of one forward pass on one image."""

    params: int
    flops: int


def count_flops(fn: Callable, *abstract_args: Any) -> int:
    """2*MAC of every dot_general and convolution that ``fn(*abstract_args)`` runs, on an accelerator.

    Arguments are arrays or pytrees of ``jax.ShapeDtypeStruct``. Scans count once per iteration, a conditional as its
    dearest branch. Raises ValueError on a while loop around counted work: its trip count is not in the program.
    """
    return _count(_traced(fn, *abstract_args).jaxpr)


def parameter_count(module: nn.Module, *abstract_args: Any) -> int:
    """Number of elements of ``module``'s parameters when initialised on ``abstract_args``; nothing is allocated."""
    return _cost(module, *abstract_args).params


def network_cost(config: NetConfig, latent_size: int, context_length: int) -> Cost:
    """Cost of the network on one latent of ``latent_size`` x ``latent_size`` with ``context_length`` text tokens."""
    return _cost(network(config), *inputs(config, latent_size, context_length))


def codi_cost(config: NetConfig, latent_size: int, context_length: int) -> Cost:
    """Cost of the network and its adapter (:mod:`ldmscale.models.adapter`) on one latent, as :func:`network_cost`'s."""
    net = network_cost(config, latent_size, context_length)
    added = _cost(adapter(config), *inputs(config, latent_size, context_length))
    return Cost(params=net.params + added.params, flops=net.flops + added.flops)


def _cost(module: nn.Module, *abstract_args: Any) -> Cost:
    # One trace for both: to draw the initial parameters, flax runs the network once; drawing multiplies no matrices.
    program, shapes = _traced(module.init, jax.random.key(0), *abstract_args, return_shape=True)
    params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    return Cost(params=params, flops=_count(program.jaxpr))


def _traced(fn: Callable, *abstract_args: Any, **options: Any) -> Any:
    """``jax.make_jaxpr`` as on an accelerator: the CPU's own ways multiply a little more in attention, and less than
    half as much in upsampling, than the layers' definitions, by which costs are compared."""
    with traced_for("tpu"):
        return jax.make_jaxpr(fn, **options)(*abstract_args)


def _inner(params: dict) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        kind = eqn.primitive.name
        if kind == "dot_general":
            (contracting, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[d] for d in contracting)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        elif kind == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_features
        else:
            counts = [_count(inner) for inner in _inner(eqn.params)]
            if kind == "while" and any(counts):
                raise ValueError("a while loop around matrix products has no trip count in the program: count its body")
            elif kind == "cond":
                total += max(counts)
            else:
                total += eqn.params["length"] * sum(counts) if kind == "scan" else sum(counts)
    return total
