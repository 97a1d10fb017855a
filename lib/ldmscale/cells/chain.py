"""What each stage depends on, and the digest that follows: the parts of the config a rule gets as its ``params``.

``Chain(study).<stage>()`` returns a plain dict: the part of the config that changes the stage's output, the digests of
the stages it reads under ``inputs``, and its own under ``digest``. It is a pure function of the config and of the
bytes of the files that the config names.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ldmscale.cells.cell import ON_PROMPTS, Cell
from ldmscale.cells.plan import Plan
from ldmscale.config.published import INCEPTION_DIMENSIONS
from ldmscale.config.study import DIT, DOWNSTREAM, DREAMBOOTH_PROMPTS, FINETUNED, UNET, Study
from ldmscale.errors import UserError
from ldmscale.provenance import digest, file_digest, listing_digest

# The stages that the scores of a task are measured against, beside CLIP.
SCORED_AGAINST = {**dict.fromkeys((*ON_PROMPTS, "interpolation"), ("prompts", "reference")),
                  "superres": ("pairs", "prompts", "baselines"), "dreambooth": ("subjects",)}  # fmt: skip
# The stages that figures show beside the cells of a task.
BESIDE = {"superres": ("pairs", "baselines"), "dreambooth": ("subjects",)}
# The stages that a figure without cells shows.
SHOWN_ALONE = {"latency": ("timing",), "fits": ("fits",), "validation": ("fits",)}
# The settings of a figure that name experiments.
SHOWN = ("experiment", "baseline", "equal")
# The stage that holds what the cells of a task draw.
SOURCES = {**dict.fromkeys((*ON_PROMPTS, "interpolation"), "prompts"),
           "superres": "pairs", "dreambooth": "subjects"}  # fmt: skip

# The sources of images that no file lists.
WITHOUT_LIST = ("folder", "webdataset")

CLAIMS = Path(__file__).parents[1] / "analysis" / "claims.yaml"


class Chain:
    """Params and digests of every stage of ``plan``'s study."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.study: Study = plan.study
        self.config = plan.study.config
        # A cell's digest is asked for by its jobs, the table and every figure that shows it.
        self.pretrain = lru_cache(maxsize=None)(self._pretrain)
        self.superres = lru_cache(maxsize=None)(self._superres)
        self.dreambooth = lru_cache(maxsize=None)(self._dreambooth)
        self.codi = lru_cache(maxsize=None)(self._codi)
        self.guided = lru_cache(maxsize=None)(self._guided)
        self.cell = lru_cache(maxsize=None)(self._cell)
        self.scores = lru_cache(maxsize=None)(self._scores)
        self._common = lru_cache(maxsize=None)(self._stage)
        # A job's scores are asked for by the job and by the table, an experiment by every figure that shows it.
        self.score = lru_cache(maxsize=None)(self._score)
        self._experiment = lru_cache(maxsize=None)(self._of_experiment)

    def __getitem__(self, stage: str) -> dict[str, Any]:
        """Params of a stage that there is once: data, tokenizer, autoencoder, clip, text, latents, prompts, reference,
        costs, timing, validation, fits, pairs and baselines (super-resolution), subjects (DreamBooth).

        ``text`` is what the networks attend to: the stage ``text_encoder``, or ``clip`` where the config has none.
        """
        return self._common(stage)

    def _stage(self, stage: str) -> dict[str, Any]:
        return getattr(self, f"_{stage}")()

    def _make(self, stage: str, inputs: tuple[str, ...] = (), **params: Any) -> dict[str, Any]:
        params = {**params, "inputs": {name: self[name]["digest"] for name in inputs}}
        return {**params, "digest": digest(stage, params)}

    def _data(self) -> dict[str, Any]:
        data = self.config["data"]
        sources = {"train": data["train"], "evaluation": data["evaluation"]}
        files = {k: file_digest(s["annotations"]) for k, s in sources.items() if s and "annotations" in s}
        files |= {k: listing_digest(s["images"]) for k, s in sources.items() if s and s["source"] in WITHOUT_LIST}
        return self._make("data", **sources, seed=self.study.seed, image_size=data["image_size"],
                          counts=data["counts"], shard=data["shard"], files=files)  # fmt: skip

    def _tokenizer(self) -> dict[str, Any]:
        section = self.config["tokenizer"]
        if section["files"]:
            return self._make("tokenizer", files=section["files"], file=file_digest(section["files"]))
        return self._make("tokenizer", ("data",), **section)

    def _autoencoder(self) -> dict[str, Any]:
        section = self.config["autoencoder"]
        if section["weights"]:
            return self._make("autoencoder", net=self.study.autoencoder_params(), weights=section["weights"],
                              file=file_digest(section["weights"]))  # fmt: skip
        photos = section["photos"]
        mixed = {"photos": photos, "listing": listing_digest(photos)} if photos else {}
        return self._make("autoencoder", ("data",), net=self.study.autoencoder_params(), weights=None, **mixed,
                          kl_weight=section["kl_weight"], train=section["train"], seed=self.study.seed)  # fmt: skip

    def _clip(self) -> dict[str, Any]:
        section = self.config["clip"]
        if section["weights"]:
            return self._make("clip", ("tokenizer",), net=self.study.clip_params(), weights=section["weights"],
                              file=file_digest(section["weights"]))  # fmt: skip
        return self._make("clip", ("data", "tokenizer"), net=self.study.clip_params(), weights=None,
                          train=section["train"], seed=self.study.seed)  # fmt: skip

    def _text_encoder(self) -> dict[str, Any]:
        section = self.config["text_encoder"]
        return self._make("text_encoder", ("tokenizer",), net=self.study.text_params(), weights=section["weights"],
                          file=file_digest(section["weights"]))  # fmt: skip

    def _text(self) -> dict[str, Any]:
        return self["text_encoder" if self.config["text_encoder"] else "clip"]

    def _latents(self) -> dict[str, Any]:
        return self._make("latents", ("data", "tokenizer", "autoencoder", "text"), ae=self.study.autoencoder_params(),
                          text=self.study.text_params(), scale=self.config["autoencoder"]["scale"],
                          dtype=self.config["data"]["encoded"])  # fmt: skip

    def _prompts(self) -> dict[str, Any]:
        between = dict(self.config["interpolation"] or {})
        between.pop("noises", None)
        return self._make("prompts", ("data", "tokenizer", "clip", "text"), gallery=self.config["gallery"],
                          interpolation=between, clip=self.study.clip_params(),
                          text=self.study.text_params())  # fmt: skip

    def _reference(self) -> dict[str, Any]:
        return self._make("reference", ("data", "clip"), clip=self.study.clip_params(), features=self._features(),
                          dinov2=self._dinov2())  # fmt: skip

    def _pairs(self) -> dict[str, Any]:
        section = {k: v for k, v in self.config["superres"].items() if k != "finetune"}
        folders = [section[key] for key in ("train", "evaluation", "evaluation_lr")]
        own = ("data",) if None in folders[:2] else ()
        return self._make("pairs", (*own, "tokenizer", "autoencoder", "text", *self._scale()), **section,
                          scale=self.config["autoencoder"]["scale"], image_size=self.config["data"]["image_size"],
                          seed=self.study.seed, ae=self.study.autoencoder_params(), text=self.study.text_params(),
                          files=[folder and listing_digest(folder) for folder in folders])  # fmt: skip

    def _baselines(self) -> dict[str, Any]:
        return self._make("baselines", ("pairs", "clip", "prompts"), **self._downstream())

    def _subjects(self) -> dict[str, Any]:
        keys = ("folder", "subjects", "fit", "identifier")
        section = {key: self.config["dreambooth"][key] for key in keys}
        # The dataset, or the repository that holds it.
        roots = [section["folder"], f"{section['folder']}/dataset"] if section["folder"] else []
        places = [f"{root}/{name}" for root in roots for name in (DREAMBOOTH_PROMPTS, *section["subjects"])]
        return self._make("subjects", ("tokenizer", "autoencoder", "text", "clip", *self._scale()), **section,
                          scale=self.config["autoencoder"]["scale"], image_size=self.config["data"]["image_size"],
                          ae=self.study.autoencoder_params(), text=self.study.text_params(),
                          clip=self.study.clip_params(), files=[file_digest(place) for place in places])  # fmt: skip

    def _downstream(self) -> dict[str, Any]:
        """What scores of super-resolution and DreamBooth depend on besides images."""
        metrics = self.config["metrics"]
        paths = {"lpips": metrics["lpips"], "dino": metrics["dino"]}
        files = [p and file_digest(p) for entry in metrics["lpips"].values() for p in (entry or {}).values()]
        return {"features": self._features(), **paths, "files": [*files, paths["dino"] and file_digest(paths["dino"])],
                "clip": self.study.clip_params(), "replicates": metrics["replicates"],
                "seed": self.study.seed}  # fmt: skip

    def _features(self) -> dict[str, Any]:
        path = self.config["metrics"]["inception"]
        return {"inception": path, "file": file_digest(path) if path else None, "clip": self.study.clip_name}

    def _dinov2(self) -> dict[str, Any] | None:
        path = self.config["metrics"]["dinov2"]
        return {"weights": path, "file": file_digest(path)} if path else None

    def _trained(self, stage: str, settings: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Params of a training run; its learning rate is constant after warm-up, so a longer run passes through the
        shorter one's states (to rounding where one of them is short, see ``SHORT`` in training/loop.py), and how far
        to train is no part of the digest."""
        settings = dict(settings)
        extent = {key: settings.pop(key) for key in ("steps", "checkpoints")}
        params = {**params, "train": settings, "diffusion": self.config["diffusion"]}
        return {**params, **extent, "digest": digest(stage, params)}

    def _pretrain(self, model: str) -> dict[str, Any]:
        member = self.study.models[model]
        made = self._trained("pretrain", member.pretrain, seed=member.seed, net=self.study.net_params(model),
                             inputs={"latents": self["latents"]["digest"]})  # fmt: skip
        # To look at while it trains: no part of the digest.
        pictures = {"ae": self.study.autoencoder_params(), "autoencoder": self["autoencoder"]["digest"]}
        return {**made, "pictures": pictures}

    def published(self, model: str) -> dict[str, Any]:
        """Params of taking ``model``'s published weights."""
        path = self.study.models[model].weights
        return self._make("published", net=self.study.net_params(model), weights=path, file=file_digest(path))

    def _base(self, model: str) -> dict[str, Any]:
        """The weights that ``model`` is finetuned from: their name and that of their stage, and digests."""
        made = self.model("t2i", model)
        return {"net": self.study.net_params(model), "base": self.study.checkpoints(model)[-1],
                "seed": self.study.models[model].seed, "inputs": {"model": made["digest"]}}  # fmt: skip

    def _validation(self) -> dict[str, Any]:
        """Params of measuring validation losses; each model's have a digest of their own."""
        section, scale = self.config["validation"], self.config["autoencoder"]["scale"]
        inputs = {name: self[name]["digest"] for name in ("data", "autoencoder", "prompts")} | self._scale()
        common = {**section, "inputs": inputs, "scale": scale, "diffusion": self.config["diffusion"],
                  "seed": self.study.seed, "ae": self.study.autoencoder_params()}  # fmt: skip
        models = {}
        for model in self.study.members:
            made, names = self.model("t2i", model)["digest"], self.study.checkpoints(model)
            models[model] = {"net": self.study.net_params(model), "weights": names, "model": made,
                             "digest": digest("validation", common, made, names)}  # fmt: skip
        return {**common, "models": models, "latent_size": self.study.latent_size,
                "batch": self.config["sampling"]["batch"],
                "digest": digest("validation", {model: m["digest"] for model, m in models.items()})}  # fmt: skip

    def _superres(self, model: str) -> dict[str, Any]:
        base = self._base(model)
        base["inputs"]["pairs"] = self["pairs"]["digest"]
        return self._trained("superres", self.config["superres"]["finetune"], **base,
                             widened=self.study.net_params(model, "superres"))  # fmt: skip

    def class_images(self, model: str) -> dict[str, Any]:
        """Params of the images that ``model`` makes of each subject's class before it is finetuned."""
        base, prior = self._base(model), self.config["dreambooth"]["prior"]
        base["inputs"]["subjects"] = self["subjects"]["digest"]
        params = {**base, **{key: prior[key] for key in ("images", "sampler", "steps", "cfg")},
                  "spacing": self.config["sampling"]["spacing"][prior["sampler"]],
                  "diffusion": self.config["diffusion"],
                  "latent_size": self.study.latent_size}  # fmt: skip
        return {**params, "batch": self.config["sampling"]["batch"], "digest": digest("class_images", params)}

    def _dreambooth(self, model: str) -> dict[str, Any]:
        base, prior = self._base(model), self.config["dreambooth"]["prior"]
        base["inputs"]["subjects"] = self["subjects"]["digest"]
        if prior:
            base["inputs"]["class_images"] = self.class_images(model)["digest"]
        return self._trained("dreambooth", self.config["dreambooth"]["finetune"], **base,
                             prior_weight=prior["weight"] if prior else 0.0)  # fmt: skip

    def _codi(self, model: str) -> dict[str, Any]:
        section = {k: v for k, v in self.config["codi"].items() if k != "finetune"}
        base = self._base(model)
        base["inputs"]["latents"] = self["latents"]["digest"]
        return self._trained("codi", self.config["codi"]["finetune"], **base, **section)

    def _guided(self, model: str) -> dict[str, Any]:
        # Each student begins where the one before it ended: how far to train is part of the digest.
        base = self._base(model)
        base["inputs"]["latents"] = self["latents"]["digest"]
        params = {**base, **self.config["guided"], "student": self.study.net_params(model, "guided"),
                  "diffusion": self.config["diffusion"]}  # fmt: skip
        return {**params, "digest": digest("guided", params)}

    def weights(self, cell: Cell) -> str:
        """Digest of the weights that ``cell`` samples from."""
        return digest("weights", self.model(cell.task, cell.model)["digest"], cell.weights)

    def model(self, task: str, model: str) -> dict[str, Any]:
        """Params of the stage that makes ``model``'s weights for ``task``."""
        return getattr(self, self.study.stage(task, model))(model)

    def _scale(self) -> dict[str, str]:
        """The latents, which measure the scale, unless the config gives it."""
        return {} if self.config["autoencoder"]["scale"] else {"latents": self["latents"]["digest"]}

    def _cell(self, cell: Cell) -> dict[str, Any]:
        """A cell's path, whether it is scored, how many images it draws, and its digest."""
        scored = self.plan.is_scored(cell)
        counts = self.config["data"]["counts"]
        inputs = [self.weights(cell), self["autoencoder"]["digest"], self[SOURCES[cell.task]]["digest"]]
        spacing, scale = self._spacing(cell), self.config["autoencoder"]["scale"]
        draws = {**dict.fromkeys(ON_PROMPTS, lambda: {"scored": scored}),
                 "interpolation": lambda: {"noises": self.config["interpolation"]["noises"]},
                 "dreambooth": lambda: {k: self.config["dreambooth"][k] for k in ("images_per_prompt", "class_images")},
                 }.get(cell.task, dict)()  # fmt: skip
        made = digest("cell", cell.path, draws, spacing, self.config["diffusion"], self.study.seed, counts, inputs,
                      scale, self._scale())  # fmt: skip
        return {"path": cell.path, "draws": draws, "spacing": spacing, "digest": made}

    def _spacing(self, cell: Cell) -> str | None:
        """How the timesteps of ``cell`` are chosen; a student of guided distillation knows its own grid."""
        return "trailing" if cell.task == "guided" else self.config["sampling"]["spacing"].get(cell.sampler)

    def generate(self, prefix: str) -> dict[str, Any]:
        """Params of the generation job ``prefix``: its cells and what all of them share."""
        cells = [self.cell(cell) for cell in self.plan.under(prefix)]
        task, model = self.plan.under(prefix)[0].task, self.plan.under(prefix)[0].model
        return {"cells": cells, "task": task, "net": self.study.net_params(model, task),
                "ae": self.study.autoencoder_params(),
                "diffusion": self.config["diffusion"], "seed": self.study.seed, "latent_size": self.study.latent_size,
                "batch": self.config["sampling"]["batch"], "scale": self.config["autoencoder"]["scale"],
                "inputs": {name: self[name]["digest"] for name in ("autoencoder", SOURCES[task])} | self._scale()
                | {"model": self.model(task, model)["digest"]},
                "digest": digest("cell", [c["digest"] for c in cells])}  # fmt: skip

    def _score(self, prefix: str) -> dict[str, Any]:
        """Params of the scoring job ``prefix``."""
        made = [self.cell(cell) for cell in self.plan.under(prefix) if self.plan.is_scored(cell)]
        if not made:
            raise UserError(f"'{prefix}' is not scored: every experiment that has it says `scored: false`")
        task = self.plan.under(prefix)[0].task
        against = SCORED_AGAINST[task]
        if task in DOWNSTREAM:
            common = self._downstream()
        else:
            common = {"features": self._features(), "replicates": self.config["metrics"]["replicates"],
                      "seed": self.study.seed, "clip": self.study.clip_params(), "dinov2": self._dinov2(),
                      "alphas": (self.config["interpolation"] or {}).get("alphas", [])}  # fmt: skip
        common = {**common, "task": task, "inputs": {name: self[name]["digest"] for name in ("clip", *against)}}
        cells = [{**c, "score_digest": digest("score", common, c["digest"])} for c in made]
        return {**common, "cells": cells, "keep_images": self.config["sampling"]["keep_images"],
                "digest": digest("score", [c["score_digest"] for c in cells])}  # fmt: skip

    def _costs(self) -> dict[str, Any]:
        finetuned = {task: {m: self.study.net_params(m, task) for m in self.study.members}
                     for task in FINETUNED if self.config[task]}  # fmt: skip
        return self._make("costs", models={m: self.study.net_params(m) for m in self.study.members},
                          finetuned=finetuned, reference=self.study.network(self.config["reference_filters"]),
                          latent_size=self.study.latent_size, ae=self.study.autoencoder_params(),
                          text=self.study.text_params())  # fmt: skip

    def _timing(self) -> dict[str, Any]:
        """Params of timing: the networks that scored cells sample with, and whether steps are guided by a second
        evaluation; ``t2i`` stands for every task but CoDi, also where the network is a percent larger (a wider first
        convolution, a told weight)."""
        networks: dict[str, Any] = {}
        first = [cell for cell in self.plan.scored if cell.model in self.study.members]
        for cell in sorted(first, key=lambda cell: cell.path):
            models = networks.setdefault("codi" if cell.task == "codi" else "t2i", {})
            runs = models.setdefault(cell.model, {"net": self.study.net_params(cell.model), "guided": []})
            if (guided := cell.evaluates_twice) not in runs["guided"]:
                runs["guided"] = sorted([*runs["guided"], guided])
        return self._make("timing", networks=networks, latent_size=self.study.latent_size,
                          batch=self.config["sampling"]["batch"], diffusion=self.config["diffusion"],
                          ae=self.study.autoencoder_params(), text=self.study.text_params())  # fmt: skip

    def _scores(self) -> dict[str, Any]:
        """Params of gathering: every scoring job's digest, and what turns a cell into a row of the table."""
        scored = {prefix: self.score(prefix) for prefix in self.plan.scoring_jobs()}
        jobs = {prefix: params["digest"] for prefix, params in scored.items()}
        cells = sorted([c["path"], c["score_digest"]] for params in scored.values() for c in params["cells"])
        finetuned = {task: self.config[task]["finetune"]["batch"] for task in FINETUNED if self.config[task]}
        if "dreambooth" in finetuned and self.config["dreambooth"]["prior"]:
            finetuned["dreambooth"] *= 2  # as many images of the class
        members, dits = self.study.members, self._of_family(DIT)
        family = {"filters": {name: m.filters for name, m in members.items()},
                  "batch": {name: m.pretrain["batch"] for name, m in members.items()},
                  "trainings": {name: [m.member, m.seed - self.study.seed] for name, m in self.study.models.items()},
                  "finetune": finetuned,
                  **({"dit": {name: members[name].net for name in dits}} if dits else {})}  # fmt: skip
        inputs = {stage: self[stage]["digest"] for stage in ("costs", "timing")}
        # Of the cells, however jobs are cut.
        return {"jobs": jobs, "family": family, "inputs": inputs, "digest": digest("scores", cells, family, inputs)}

    def report(self, *experiments: str) -> dict[str, Any]:
        """Params of what reads the table alone: how the study is labelled, and the digests of what it shows."""
        label = {"study": self.study.name, "counts": self.config["data"]["counts"],
                 "sources": [self.config["data"]["train"], self.config["data"]["evaluation"]],
                 "image_size": self.config["data"]["image_size"],
                 "fid_dimensions": INCEPTION_DIMENSIONS if self.config["metrics"]["inception"]
                 else self.study.clip_params()["image_width"]}  # fmt: skip
        return {
            "label": label,
            "experiments": {name: list(self._experiment(name)[1]) for name in experiments},
            "cells": digest("figure", [made for name in experiments for made in self._experiment(name)[0]]),
            "scores": self.scores()["digest"],
        }

    def _of_family(self, family: str) -> list[str]:
        """The members of a family, ascending."""
        return [name for name, member in self.study.members.items() if member.family == family]

    def _of_experiment(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Digests of the cells of an experiment, and by path those of the first training of each model: the table has
        the means of all, figures show the first."""
        made = {cell: self.cell(cell)["digest"] for cell in self.plan.experiments[name]}
        return list(made.values()), {c.path: made[c] for c in made if c.model in self.study.members}

    def summary(self) -> dict[str, Any]:
        """Params of the summary."""
        baselines = self["baselines"]["digest"] if self.config["superres"] else None
        return {**self.report(*self.plan.experiments), "baselines": baselines, "claims": self.claims()["digest"],
                "fits": self["fits"]["digest"]}  # fmt: skip

    def claims(self) -> dict[str, Any]:
        """Params of evaluating the paper's claims: the table, and the claims themselves."""
        params = {**self.report(*self.plan.experiments), "file": file_digest(CLAIMS)}
        return {**params, "digest": digest("claims", params)}

    def _fits(self) -> dict[str, Any]:
        """Params of fits and crossovers: validation losses, and the experiments whose scores they read."""
        read = [name for name in ("training", "headline", "grid", "samplers") if name in self.plan.experiments]
        names = [name for name in read if all(map(self.plan.is_scored, self.plan.experiments[name]))]
        losses = {model: m["digest"] for model, m in self["validation"]["models"].items()}
        params = {**self.report(*names), "losses": losses, "seed": self.study.seed}
        return {**params, "digest": digest("fits", params)}

    def explorer(self) -> dict[str, Any]:
        """Params of the explorer: the gallery, and the digests of the scored cells on the study's prompts."""
        cells = [cell for cell in self.plan.cells if cell.task in ON_PROMPTS and self.plan.is_scored(cell)]
        drawn = {cell.path: self.cell(cell)["digest"] for cell in cells}
        return {**self.report(), "drawn": drawn, "gallery": self.config["gallery"]}

    def figure(self, figure: str) -> dict[str, Any]:
        """Params of a figure: its settings, the cells that it shows with their digests, and the network for Fig. 2."""
        settings = self.config["figures"][figure]
        shown = [settings[key] for key in SHOWN if key in settings]
        network = None
        if figure == "fig02":
            largest = self._of_family(UNET)[-1]
            network = {"name": largest, "unet": self.study.net_params(largest), "latent_size": self.study.latent_size,
                       "context_length": self.study.text_params()["context_length"]}  # fmt: skip
        drawn = {path: made for name in shown for path, made in self._experiment(name)[1].items()}
        tasks = {cell.task for name in shown for cell in self.plan.experiments[name][:1]}  # an experiment has one
        beside = {stage: self[stage]["digest"] for task in sorted(tasks) for stage in BESIDE.get(task, ())}
        beside |= {stage: self[stage]["digest"] for stage in SHOWN_ALONE.get(figure, ())}
        params = {**self.report(*shown), "drawn": drawn, "beside": beside, "settings": settings,
                  "dpi": self.config["dpi"], "gallery": self.config["gallery"], "network": network,
                  "interpolation": self.config["interpolation"] if "pair" in settings else None}  # fmt: skip
        return {**params, "digest": digest("figure", params)}
