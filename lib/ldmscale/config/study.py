"""The typed view of ``config.yaml``: one frozen dataclass a stage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ldmscale.config.published import clip_shape, text_shape

DOWNSTREAM = ("superres", "dreambooth")
DISTILLED = ("codi", "guided")  # text-to-image in fewer steps
FINETUNED = DOWNSTREAM + DISTILLED  # tasks with weights of their own, made from each model's last
GUIDANCE_WIDTH = 256  # of the guidance weight's embedding in guided distillation's students (LCM's)
DREAMBOOTH_PROMPTS = "prompts_and_classes.txt"  # a file of google/dreambooth's dataset
UNET, DIT = "unet", "dit"  # the families of networks
DIT_KEYS = ("width", "depth", "heads")  # that a transformer is told apart by
PUBLISHED = "published"  # what the weights of a model that is not trained here are called


def repeated(name: str, repetition: int) -> str:
    """What the training of the member ``name`` from the seed ``repetition`` after the study's is called."""
    return f"{name}.s{repetition}"


@dataclass(frozen=True)
class Model:
    """One training of a member of the study: its size and its pretraining settings, overrides applied.

    ``member`` is the study's name for it, ``seed`` what all of its training draws from. A U-Net (``family`` "unet") has
    ``filters``; a published one has the path of its weights as ``weights``, and may have ``heads`` of its own. A
    transformer ("dit") has ``net``: its width, depth and heads.
    """

    name: str
    member: str
    seed: int
    filters: int | None
    pretrain: dict[str, Any]
    weights: str | None = None
    heads: int | tuple[int, ...] | None = None
    family: str = UNET
    net: dict[str, int] | None = None


@dataclass(frozen=True)
class Study:
    """A checked config (see :mod:`ldmscale.config.check`) and what follows from it by arithmetic."""

    config: dict[str, Any]

    def __post_init__(self):
        # Snakemake compares params as text: the order of a mapping's keys must not look like a change.
        object.__setattr__(self, "config", json.loads(json.dumps(self.config, sort_keys=True)))

    @property
    def name(self) -> str:
        return self.config["study"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @cached_property
    def members(self) -> dict[str, Model]:
        """The study's networks by name, U-Nets first, each family ascending in size: the first training of each."""
        return {m["name"]: self._model(m, 0) for m in self.config["models"]}

    @cached_property
    def models(self) -> dict[str, Model]:
        """Every training of the family by name: the members, then their repetitions from other seeds."""
        again = range(1, self.config["training_seeds"])
        more = [self._model(m, k) for k in again for m in self.config["models"] if "weights" not in m]
        return {**self.members, **{model.name: model for model in more}}

    def _model(self, entry: dict[str, Any], repetition: int) -> Model:
        name = repeated(entry["name"], repetition) if repetition else entry["name"]
        pretrain = {**self.config["pretrain"], **entry.get("pretrain", {})}
        common = (name, entry["name"], self.seed + repetition, entry.get("filters"), pretrain)
        if entry.get("family") == DIT:
            return Model(*common, family=DIT, net={key: entry[key] for key in DIT_KEYS})
        return Model(*common, entry.get("weights"), entry.get("heads"))

    def stage(self, task: str, model: str) -> str:
        """The stage that makes ``model``'s weights for ``task``."""
        if task in FINETUNED:
            return task
        return PUBLISHED if self.models[model].weights else "pretrain"

    def devices(self, model: str) -> dict[str, Any]:
        """How jobs of ``model`` use their devices, as :class:`ldmscale.training.sharding.Devices` takes it: no part of
        what they compute, so of no digest and no params."""
        entry = next(m for m in self.config["models"] if m["name"] == self.models[model].member)
        return {**self.config["devices"], **entry.get("devices", {})}

    @property
    def latent_size(self) -> int:
        """Side of a latent: the image's over two to the number of halvings."""
        return self.config["data"]["image_size"] // 2 ** (len(self.config["autoencoder"]["channel_mult"]) - 1)

    def checkpoints(self, model: str) -> list[str]:
        """Names of the model's weights along training, ``pretrain-<step>``, ascending; ``published`` if not trained."""
        if self.models[model].weights:
            return [PUBLISHED]
        return [f"pretrain-{step}" for step in self.config["pretrain"]["checkpoints"]]

    def weights(self, task: str, model: str) -> list[list[str]]:
        """Names of the model's weights that ``task`` samples, ascending; one list, or one a DreamBooth subject or
        student of guided distillation."""
        if task not in FINETUNED:
            return [self.checkpoints(model)]
        section = self.config[task]
        if task == "guided":
            return [[f"guided_s{steps}-{section['halving']['steps']}"] for steps in section["students"]]
        names = [f"{task}_{subject}" for subject in section["subjects"]] if task == "dreambooth" else [task]
        return [[f"{name}-{step}" for step in section["finetune"]["checkpoints"]] for name in names]

    def net_params(self, model: str, task: str = "t2i") -> dict[str, Any]:
        """What :func:`ldmscale.models.network.net_config` makes ``model``'s network of, as ``task`` uses it.

        Super-resolution sees a latent of the low-resolution image beside the noisy one; students of guided
        distillation are told the guidance weight.
        """
        member = self.models[model]
        if member.family == DIT:
            dtype = {"dtype": self.config["unet"]["dtype"]}
            net = {"family": DIT, **member.net, **self.config["dit"], **dtype, **self._ends()}
        else:
            net = {**self.network(member.filters), **({"heads": member.heads} if member.heads else {})}
        if task == "superres":
            return {**net, "in_channels": 2 * net["in_channels"]}
        return {**net, "guidance_width": GUIDANCE_WIDTH} if task == "guided" else net

    def network(self, filters: int) -> dict[str, Any]:
        """Keyword arguments of the study's ``UNetConfig`` at ``filters``."""
        return {"filters": filters, **self.config["unet"], **self._ends()}

    def _ends(self) -> dict[str, int]:
        """What every network takes and predicts."""
        return {
            "context_width": self.text_params()["width"],
            "in_channels": self.config["autoencoder"]["latent_channels"],
            "out_channels": self.config["autoencoder"]["latent_channels"],
        }

    def autoencoder_params(self) -> dict[str, Any]:
        """Keyword arguments of :class:`ldmscale.models.autoencoder.AutoencoderConfig`."""
        keys = ("channels", "channel_mult", "blocks_per_level", "latent_channels", "norm_groups", "mid_attention")
        return {key: self.config["autoencoder"][key] for key in keys}

    def clip_params(self) -> dict[str, Any]:
        """Keyword arguments of :class:`ldmscale.models.clip.CLIPConfig`: the published one's, or the study's own."""
        section = self.config["clip"]
        if section["published"]:
            return clip_shape(section["published"])
        keys = ("patch", "image_width", "image_depth", "text_width", "text_depth", "heads", "embed_dim")
        return {
            "image_size": self.config["data"]["image_size"],
            **{key: section[key] for key in keys},
            **{key: self.config["tokenizer"][key] for key in ("vocab_size", "context_length")},
        }

    @property
    def clip_name(self) -> str:
        """What CLIP scores are labelled with."""
        published = self.config["clip"]["published"]
        if not published:
            return "study CLIP"
        return f"CLIP {published}" if isinstance(published, str) else "published CLIP"

    def text_params(self) -> dict[str, Any]:
        """Keyword arguments of :class:`ldmscale.models.clip.TextTower` for what the U-Nets attend to.

        Without a ``text_encoder`` in the config that is the text tower of the study's CLIP.
        """
        section = self.config["text_encoder"]
        if section:
            return text_shape(section["published"])
        clip = self.clip_params()
        return {
            "width": clip["text_width"],
            "depth": clip["text_depth"],
            "heads": clip.get("text_heads", clip.get("heads")),
            "mlp": clip.get("text_mlp"),
            "activation": clip.get("activation", "quick_gelu"),
            "vocab_size": clip["vocab_size"],
            "context_length": clip["context_length"],
        }
