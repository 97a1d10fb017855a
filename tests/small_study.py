"""A study that looks finished: random weights in the files and manifests that the rules write, nothing trained."""

import shutil
from pathlib import Path

import jax
import numpy as np
import yaml
from helpers import REPO

from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.read import read_study
from ldmscale.data.tokenizer import train_tokenizer
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.clip import CLIPConfig
from ldmscale.models.unet import UNetConfig
from ldmscale.provenance import write_manifest
from ldmscale.training.checkpoint import save_tree
from ldmscale.training.weights import parameter_shapes

MODEL, SCALE, FILES = "f8", 0.7, ["smoke.yaml", "small.yaml"]
CAPTIONS = ["a large red circle on a white background", "a small star at night", "two blue squares, side by side"]
OVERLAY = {"study": "small", "autoencoder": {"mid_attention": True}, "unet": {"heads": 4, "norm_groups": 4}}


def random_weights(config, seed: int):
    """Parameters of which none is zero or one, of a spread that keeps activations alive."""
    draw = np.random.default_rng(seed)

    def leaf(path, shape):
        name, noise = path[-1].key, draw.standard_normal(shape.shape)
        if name == "kernel":
            noise *= np.prod(shape.shape[:-1]) ** -0.5
        elif name == "scale":
            noise = 1 + 0.2 * noise
        elif name == "bias":
            noise *= 0.1
        return noise.astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, parameter_shapes(config))


def make(folder: Path, trained=("pretrain-20", "pretrain-40")) -> Chain:
    """The smoke study, changed a little, in ``folder``, with ``MODEL`` trained; its config is ``FILES``."""
    shutil.copy(REPO / "config.yaml", folder)
    shutil.copy(REPO / "configs" / "smoke.yaml", folder)
    shutil.copytree(REPO / "schemas", folder / "schemas")
    (folder / "small.yaml").write_text(yaml.safe_dump(OVERLAY))
    study = read_study([folder / name for name in FILES], folder)
    chain, results = Chain(Plan(study)), Path("results") / study.name

    def manifest(path, stage, **content):
        write_manifest(
            folder / results / path, path.rpartition("/")[2].removesuffix(".json"), stage["digest"], **content
        )

    def saved(path, config, seed):
        save_tree(folder / results / path, random_weights(config, seed))
        return str(results / path)

    train_tokenizer(CAPTIONS, study.config["tokenizer"]["vocab_size"], folder / results / "encoders" / "bpe.json")
    manifest("encoders/tokenizer.json", chain["tokenizer"], file=str(results / "encoders" / "bpe.json"))
    autoencoder, clip = AutoencoderConfig(**study.autoencoder_params()), CLIPConfig(**study.clip_params())
    file = saved("encoders/autoencoder/step-30.safetensors", autoencoder, 1)
    manifest("encoders/autoencoder.json", chain["autoencoder"], weights=file)
    manifest("encoders/clip.json", chain["clip"], weights=saved("encoders/clip/step-30.safetensors", clip, 2))
    manifest("latents/latents.json", chain["latents"], scale=SCALE)
    net = UNetConfig(**study.net_params(MODEL))
    files = {n: saved(f"models/{MODEL}/pretrain/{n}.safetensors", net, 3 + i) for i, n in enumerate(trained)}
    manifest(f"models/{MODEL}/pretrain.json", chain.pretrain(MODEL), weights=files)
    return chain
