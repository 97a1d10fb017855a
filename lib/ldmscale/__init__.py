"""ldmscale: how big should a latent diffusion model be, at a given sampling budget?

Importing the package prepares the process for JAX (see :mod:`ldmscale.runtime`), so it must come before ``import jax``.
"""

from ldmscale import runtime

runtime.prepare()
