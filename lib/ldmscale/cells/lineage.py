"""Where an artefact comes from: the stages behind a file of a study, back to its config and data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from ldmscale.cells.cell import Cell
from ldmscale.cells.chain import Chain
from ldmscale.config.study import FINETUNED
from ldmscale.errors import UserError

# The files that say what a stage was made from, within a study's folder; of stages that there are once.
MANIFESTS = {
    "data": "data/data.json",
    "latents": "latents/latents.json",
    "prompts": "prompts/prompts.json",
    "reference": "reference/reference.json",
    "pairs": "superres/pairs.json",
    "baselines": "superres/baselines.json",
    "subjects": "dreambooth/subjects.json",
    **{name: f"encoders/{name}.json" for name in ("tokenizer", "autoencoder", "clip", "text_encoder")},
    **{name: f"{name}.json" for name in ("costs", "timing", "validation", "fits", "claims")},
}
# Whose files lie in a folder beside others'.
_FOLDERS = {"superres": "pairs", "dreambooth": "subjects"}


@dataclass(frozen=True)
class Link:
    """A stage that made something: ``file``, within the study's folder, tells what it was made from.

    ``digest`` is what the config asks for, None where the file carries none; ``settings`` the part of the config that
    the stage reads; ``inputs`` the stages that it reads.
    """

    stage: str
    file: str
    digest: str | None
    settings: dict[str, Any]
    inputs: tuple[Link, ...]

    def walk(self) -> Iterator[Link]:
        """Every link once, what is read before what reads it."""
        seen: dict[str, Link] = {}

        def visit(link: Link) -> Iterator[Link]:
            for before in link.inputs:
                if before.file not in seen:
                    yield from visit(before)
            seen[link.file] = link
            yield link

        yield from visit(self)


class Lineage:
    """The links behind the files of ``chain``'s study."""

    def __init__(self, chain: Chain):
        self.chain, self.study, self.plan = chain, chain.study, chain.plan
        self.stage = lru_cache(maxsize=None)(self._stage)
        self.model = lru_cache(maxsize=None)(self._model)
        self.generated = lru_cache(maxsize=None)(self._generated)
        self.scores = lru_cache(maxsize=None)(self._scores)

    def of(self, file: str) -> Link:
        """What made ``file``, a path within the study's folder.

        Raises:
            UserError: no stage of this study makes such a file.
        """
        path = PurePath(file)
        first, *rest = path.parts
        once = {manifest: stage for stage, manifest in MANIFESTS.items()}
        if first == "figures" and self.chain.config["figures"].get(path.stem) is not None:
            return self._figure(path.stem)
        if first == "cells" and rest:
            return self._of_cells(PurePath(*rest))
        if first == "models" and len(rest) > 1 and rest[0] in self.study.models:
            return self._of_model(rest[0], PurePath(rest[1]).stem)
        if file in ("scores.parquet", "trainings.parquet"):
            return self.scores()
        if file in ("summary.md", "explorer.html", "report.html") or first == "pages" or path.stem == "table1":
            return self._page(file)
        if file in once or path.stem in MANIFESTS:
            return self.stage(once.get(file, path.stem))
        if path.stem == "crossover":
            return self.stage("fits")
        if first == "encoders" and rest:
            # The tokenizer's file is called by its format.
            return self.stage(rest[0] if rest[0] in MANIFESTS else "tokenizer")
        if first in MANIFESTS or first in _FOLDERS:
            return self.stage(_FOLDERS.get(first, first))
        raise UserError(f"{file} is not made by any stage of the study '{self.study.name}'")

    def _of_cells(self, path: PurePath) -> Link:
        prefix = path.parent.as_posix()
        if path.name == "generated.json":
            return self.generated(prefix)
        if path.name == "scores.json" and "cfg=" not in prefix:
            return self._scored(prefix)
        cell = self.chain.cell(Cell.parse(prefix))
        job = self.generated(self.plan.generation_job(Cell.parse(prefix)))
        drawn = Link("generate", f"cells/{prefix}/sample.json", cell["digest"], cell["draws"], job.inputs)
        return self._scored(prefix) if path.name == "scores.json" else drawn

    def _of_model(self, model: str, name: str) -> Link:
        if name == "validation":
            return self.stage("validation")
        if name == "class_images":
            return self._class_images(model)
        return self.model(name if name in FINETUNED else "t2i", model)

    def _stage(self, stage: str) -> Link:
        if stage == "text":
            stage = "text_encoder" if self.chain.config["text_encoder"] else "clip"
        params = self.chain.claims() if stage == "claims" else self.chain[stage]
        inputs = [self.stage(name) for name in params.get("inputs", ())]
        if stage == "validation":
            inputs += [self.model("t2i", model) for model in params["models"]]
        if stage in ("fits", "claims"):
            inputs += [self.scores(), *([self.stage("validation")] if stage == "fits" else [])]
        return self._link(stage, MANIFESTS[stage], params, inputs)

    def _model(self, task: str, model: str) -> Link:
        params, stage = self.chain.model(task, model), self.study.stage(task, model)
        return self._link(stage, f"models/{model}/{stage}.json", params, self._read(params, model))

    def _class_images(self, model: str) -> Link:
        params = self.chain.class_images(model)
        return self._link("class_images", f"models/{model}/class_images.json", params, self._read(params, model))

    def _read(self, params: dict[str, Any], model: str) -> list[Link]:
        special = {"model": lambda: self.model("t2i", model), "class_images": lambda: self._class_images(model)}
        return [special.get(name, lambda name=name: self.stage(name))() for name in params.get("inputs", ())]

    def _generated(self, prefix: str) -> Link:
        params, cell = self.chain.generate(prefix), self.plan.under(prefix)[0]
        inputs = [self.stage(name) for name in params["inputs"] if name != "model"]
        inputs.append(self.model(cell.task, cell.model))
        return self._link("generate", f"cells/{prefix}/generated.json", params, inputs)

    def _scored(self, prefix: str) -> Link:
        params = self.chain.score(prefix)
        inputs = [self.stage(name) for name in params["inputs"]]
        inputs += [self.generated(job) for job in self.plan.generation_jobs(prefix)]
        return self._link("score", f"cells/{prefix}/scores.json", params, inputs)

    def _scores(self) -> Link:
        params = self.chain.scores()
        inputs = [self.stage(name) for name in params["inputs"]]
        inputs += [self._scored(prefix) for prefix in params["jobs"]]
        return self._link("scores", "scores.parquet", params, inputs)

    def _figure(self, figure: str) -> Link:
        params = self.chain.figure(figure)
        jobs = dict.fromkeys(self.plan.generation_job(Cell.parse(path)) for path in params["drawn"])
        inputs = [self.scores(), *map(self.stage, params["beside"]), *map(self.generated, jobs)]
        return self._link("figure", f"figures/{figure}.png", params, inputs)

    def _page(self, file: str) -> Link:
        """What people read and no stage does: it carries no digest, its params are watched by Snakemake alone."""
        more = [] if "table1" in file or "explorer" in file else [self.stage("claims"), self.stage("fits")]
        return Link("page", file, None, {}, (self.scores(), *more))

    @staticmethod
    def _link(stage: str, file: str, params: dict[str, Any], inputs: list[Link]) -> Link:
        settings = {key: value for key, value in params.items() if key not in ("inputs", "digest")}
        # CLIP is read twice where its text tower is the text encoder.
        return Link(stage, file, params["digest"], settings, tuple({link.file: link for link in inputs}.values()))
