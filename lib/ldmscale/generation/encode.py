"""Images and captions through the frozen encoders: what training and sampling start from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.clip import CLIP, CLIPConfig, TextModel, TextTower, preprocess
from ldmscale.runtime import forward_options
from ldmscale.tasks.autoencoder import to_unit
from ldmscale.training.sharding import Kept, spread

Tell = Callable[[int, int], None]  # how many of how many rows are done


def in_batches(fn: Callable[..., Any], batch: int, *arrays: np.ndarray, tell: Tell = lambda *_: None) -> Any:
    """Apply ``fn`` to slices of ``batch`` rows and concatenate; the last slice is padded, so one shape is compiled.

    ``tell(done, rows)`` is called after every slice.
    """
    count = len(arrays[0])
    parts = []
    for start in range(0, count, batch):
        rows = [a[start : start + batch] for a in arrays]
        real = len(rows[0])
        rows = [np.concatenate([r, np.repeat(r[-1:], batch - real, axis=0)]) if real < batch else r for r in rows]
        parts.append(jax.tree.map(lambda x, n=real: np.asarray(x)[:n], fn(*rows)))
        tell(start + real, count)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


class Encoders:
    """Compiled passes of an autoencoder, a CLIP and a text encoder, in batches of ``batch`` images or captions."""

    def __init__(
        self,
        ae: AutoencoderConfig | None = None,
        clip: CLIPConfig | None = None,
        text: TextTower | None = None,
        batch: int = 128,
    ):
        self.batch = batch
        self.kept = Kept()
        jit = partial(jax.jit, compiler_options=forward_options())
        if ae is not None:
            net = Autoencoder(ae)
            self._moments = jit(lambda p, x: net.apply({"params": p}, to_unit(x), method="encode"))
            self._decode = jit(lambda p, z: _to_pixels(net.apply({"params": p}, z, method="decode")))
        if clip is not None:
            towers = CLIP(clip)
            unit = clip.pixels == "unit"  # else as published ones resize, on the host
            image = jit(lambda p, x: towers.apply({"params": p}, to_unit(x) if unit else x, method="encode_image"))
            self._image = image if unit else lambda p, x: image(p, preprocess(x, clip.image_size))
            self._embed = jit(lambda p, t: towers.apply({"params": p}, t, method="encode_text")[1])
        if text is not None:
            encoder = TextModel(text)
            self._states = jit(lambda p, t: encoder.apply({"params": p}, t))

    def _bound(self, program: Callable[..., Any], params: Any) -> Callable[..., Any]:
        return spread(program, params, self.batch, self.kept)

    def moments(self, params: Any, images: np.ndarray, tell: Tell = lambda *_: None) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [N,S,S,3] -> mean and standard deviation of the latents, float32 [N,h,w,C]."""
        mean, logvar = in_batches(self._bound(self._moments, params), self.batch, images, tell=tell)
        return mean, np.exp(0.5 * logvar)

    def decode(self, params: Any, z: np.ndarray) -> np.ndarray:
        """Latents in the autoencoder's own scale [N,h,w,C] -> uint8 [N,S,S,3]."""
        return in_batches(self._bound(self._decode, params), self.batch, z)

    def image_features(self, params: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [N,S,S,3] -> (features [N,width], unit embedding [N,E])."""
        return in_batches(self._bound(self._image, params), self.batch, images)

    def text_embeddings(self, params: Any, tokens: np.ndarray) -> np.ndarray:
        """int32 [N,L] -> CLIP's unit embeddings [N,E]."""
        return in_batches(self._bound(self._embed, params), self.batch, tokens)

    def states(self, params: Any, tokens: np.ndarray, tell: Tell = lambda *_: None) -> np.ndarray:
        """int32 [N,L] -> the text encoder's states [N,L,width], what a U-Net attends to."""
        return in_batches(self._bound(self._states, params), self.batch, tokens, tell=tell)


def _to_pixels(images: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
