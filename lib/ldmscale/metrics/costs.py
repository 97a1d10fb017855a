"""What every network of a study costs, counted once from the traced programs: parameters, and FLOPs of one image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.clip import TextModel, TextTower
from ldmscale.models.flops import Cost, codi_cost, count_flops, network_cost
from ldmscale.models.network import net_config
from ldmscale.training.weights import parameter_shapes


def study_costs(params: dict[str, Any]) -> dict[str, Any]:
    """Costs of the networks of ``params`` (see ``Chain["costs"]``), FLOPs as 2 a multiply-add.

    ``models``: {model: {params, flops}} of the family's U-Nets, a pass on one latent; ``finetuned``: the same under
    each task whose network differs from them (what is trained counts as ``params``: see :func:`codi_cost`);
    ``reference``: FLOPs of normalised cost 1; ``encode``, ``decode``, ``caption``: FLOPs of the autoencoder's halves
    for one image and of the text encoder for one caption.
    """
    text, size, ae = TextTower(**params["text"]), params["latent_size"], AutoencoderConfig(**params["ae"])

    def cost(net: dict[str, Any], of: Any = network_cost) -> dict[str, int]:
        found: Cost = of(net_config(net), size, text.context_length)
        return {"params": found.params, "flops": found.flops}

    plain = {model: cost(net) for model, net in params["models"].items()}
    finetuned = {
        task: {model: cost(net, codi_cost if task == "codi" else network_cost) for model, net in nets.items()}
        for task, nets in params["finetuned"].items()
        if task == "codi" or nets != params["models"]
    }
    network, encoder = Autoencoder(ae), TextModel(text)
    z = jax.ShapeDtypeStruct((1, size, size, ae.latent_channels), jnp.float32)
    image = jax.ShapeDtypeStruct((1, size * ae.factor, size * ae.factor, 3), jnp.float32)
    passes = {
        method: count_flops(
            lambda p, x, m=method: network.apply({"params": p}, x, method=m), parameter_shapes(ae), seen
        )
        for method, seen in (("encode", image), ("decode", z))
    }
    tokens = jax.ShapeDtypeStruct((1, text.context_length), jnp.int32)
    caption = count_flops(lambda p, t: encoder.apply({"params": p}, t), parameter_shapes(text), tokens)
    reference = cost(params["reference"])["flops"]
    return {"models": plain, "finetuned": finetuned, "reference": reference, **passes, "caption": caption}
