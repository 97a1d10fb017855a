"""The training images and captions through the encoders, shard by shard: each is made once, by whoever comes first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldmscale.data.encoded import Latents, has_shard, load_array, save_array, save_index, save_shard
from ldmscale.data.loader import batches
from ldmscale.data.records import Shards
from ldmscale.data.tokenizer import load_tokenizer
from ldmscale.errors import UserError
from ldmscale.generation.encode import Encoders
from ldmscale.jobs import EVERY, Progress, Say
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.clip import TextTower
from ldmscale.provenance import read_manifest
from ldmscale.storage import StorageError
from ldmscale.tasks.clip import caption_rows
from ldmscale.training.encoders import load_encoder

MEASURED = 1 << 14  # images whose latents' deviation gives the scale
# Pixels that a device encodes at once: the autoencoder's first level keeps some kilobytes of each.
PIXELS = 1 << 21
RIGID = 1e-12  # of a mean square: float32's rounding
CAPTIONS = 128  # likewise
READ_AHEAD = 8  # with fewer shards than this, importing Grain takes longer than reading them


def encode_shards(folder: Path, params: Mapping[str, Any], inputs: Any, numbers: Iterable[int] | None, say: Say) -> int:
    """Encode the shards ``numbers`` of the training records (None: all) into ``folder`` -> how many there are in all.

    ``params``: of the stage (``Chain["latents"]``); ``inputs``: paths of the manifests data, tokenizer, autoencoder and
    text. Shards that are there under the stage's digest stay. Raises UserError for inputs that are not what ``params``
    names.
    """
    of, digest, dtype = params["inputs"], params["digest"], np.dtype(params["dtype"])
    ae, text = AutoencoderConfig(**params["ae"]), TextTower(**params["text"])
    read_manifest(inputs.data, "data", of["data"])
    file = read_manifest(inputs.tokenizer, "tokenizer", of["tokenizer"])["file"]
    shards = Shards(Path(inputs.data).parent, "train")
    wanted = range(len(shards)) if numbers is None else [n for n in numbers if n < len(shards)]
    missing = [number for number in wanted if not has_shard(folder, number, digest)]
    if len(missing) < len(wanted):
        say(f"{len(wanted) - len(missing)} of {len(wanted)} shards are there already")
    if not missing and _whole(folder / "null.npy"):
        return len(shards)
    tokenizer = load_tokenizer(file)
    ae_weights = load_encoder(inputs.autoencoder, of["autoencoder"], ae)
    text_weights = load_encoder(inputs.text, of["text"], text)
    devices = 1 if jax.default_backend() == "cpu" else jax.local_device_count()  # those of a CPU share its memory
    images, captions = Encoders(ae), Encoders(text=text, batch=CAPTIONS * devices)
    # Before any shard: where one is of this digest, so is the empty caption.
    null = captions.states(text_weights, tokenizer.encode([""], text.context_length))[0]
    save_array(folder / "null.npy", null.astype(dtype))
    progress = Progress(say, len(missing), EVERY)
    read = batches(lambda i: shards[missing[i]], 0, len(missing), threads=int(len(missing) > READ_AHEAD))
    for done, (number, records) in enumerate(zip(missing, read, strict=True), 1):
        texts, first = caption_rows(records.captions)
        if texts:
            images.batch = max(1, min(128, PIXELS // records.images[0, ..., 0].size)) * devices
            mean, std = images.moments(ae_weights, records.images)
            states = captions.states(text_weights, tokenizer.encode(texts, text.context_length))
        else:  # of this shard no image could be used; what follows is never read
            mean = std = states = np.zeros((0, 1), dtype)
        save_shard(folder, number, digest, *(a.astype(dtype) for a in (mean, std, states)), np.diff(first))
        progress(done, f"{done}/{len(missing)} shards encoded")
    return len(shards)


def finish(folder: Path, shards: int, params: Mapping[str, Any]) -> tuple[float, list[int]]:
    """Index the ``shards`` in ``folder`` -> the latents' scale, and the shape [N,h,w,C] of all of them.

    The scale is the stage's own, or one over the deviation of the first ``MEASURED`` images' latents.
    """
    save_index(folder, shards, params["digest"])
    latents = Latents.load(folder, 1.0)
    scale = params["scale"]
    if not scale:
        mean, std = (rows[:MEASURED].astype(np.float32) for rows in (latents.mean, latents.std))
        # Of an autoencoder that encodes all images alike, scaling to unit variance would make rounding errors large.
        if not mean.var() > RIGID * np.square(mean).mean():
            raise UserError(
                f"the latents of {len(mean)} training images are all the same: the autoencoder that makes them is "
                "broken (train it longer, or at a lower autoencoder.train.learning_rate)"
            )
        scale = float(1.0 / np.sqrt(mean.var() + (std**2).mean()))
    return scale, list(latents.mean.shape)


def _whole(path: Path) -> bool:
    try:
        load_array(path)
    except StorageError:  # no word on the file
        raise
    except UserError:
        return False
    return True
