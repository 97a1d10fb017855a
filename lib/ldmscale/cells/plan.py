"""Experiments → cells → jobs, as pure functions of the config."""

from __future__ import annotations

import math
from itertools import product

from ldmscale.cells.cell import LEVELS, TASKS, Cell
from ldmscale.cells.cost import norm_costs, steps_at_cost
from ldmscale.config.study import Study
from ldmscale.diffusion.samplers import SAMPLERS
from ldmscale.errors import UserError


def expand(study: Study, name: str) -> list[Cell]:
    """The cells of experiment ``name``: a product over its axes, in the order model, weights, sampler, steps, CFG.

    With ``costs`` in place of ``steps``, each model's step counts follow from its normalised cost.
    """
    spec = study.config["experiments"][name]
    members = list(study.members) if spec["models"] == "all" else spec["models"]
    # Other trainings of a member are there for the table; pictures show the first.
    again = [name for name, m in study.models.items() if m.member in members and name not in study.members]
    models = [*members, *(again if spec["scored"] else [])]
    costs = norm_costs(study)
    cells: dict[Cell, None] = {}  # ordered, and without the repeats that rounding makes of nearby costs
    for model in models:
        steps = (
            spec["steps"]
            if "steps" in spec
            else [
                min(steps_at_cost(cost, costs[model]), study.config["diffusion"]["steps"] - 1) for cost in spec["costs"]
            ]
        )
        task = spec.get("task", "t2i")
        weights = [w for run in study.weights(task, model) for w in (run if spec["weights"] == "all" else run[-1:])]
        for w, sampler, s, cfg in product(weights, spec["samplers"], steps, spec["cfg"]):
            cells[Cell(task, model, w, sampler, s, float(cfg))] = None
    return list(cells)


class Plan:
    """Every cell of a study, which of them are scored, and the jobs that make them.

    A job is named by a prefix of its cells' paths. Generation is cut at ``sampling.cells_per_job``; scoring, which to
    start takes longer than a model's cells, at the task where generation is cut at the model, and else at the model.
    Any longer prefix, down to one cell, can be asked for as well.
    """

    def __init__(self, study: Study):
        self.study = study
        self.experiments = {
            name: expand(study, name) for name, spec in study.config["experiments"].items() if spec is not None
        }
        scored = [name for name in self.experiments if study.config["experiments"][name]["scored"]]
        self.cells = list(dict.fromkeys(cell for cells in self.experiments.values() for cell in cells))
        self.scored = set().union(*(self.experiments[name] for name in scored)) if scored else set()
        self._by_prefix: dict[str, list[Cell]] = {}
        for cell in self.cells:
            for level in LEVELS:
                self._by_prefix.setdefault(cell.prefix(level), []).append(cell)

    def under(self, prefix: str) -> list[Cell]:
        """The planned cells under ``prefix``; a whole cell path outside the plan stands for itself (and is scored).

        Raises:
            UserError: no planned cell has this prefix and it is no cell of this study's models and checkpoints.
        """
        if prefix in self._by_prefix:
            return self._by_prefix[prefix]
        cell = Cell.parse(prefix)
        tasks = [task for task in TASKS if self.study.config.get(task, True)]  # without a section, not in this study
        known = {"task": lambda: tasks, "model": lambda: self.study.models,
                 "weights": lambda: [w for run in self.study.weights(cell.task, cell.model) for w in run],
                 "sampler": lambda: SAMPLERS}  # fmt: skip
        for name, those in known.items():
            if getattr(cell, name) not in (values := those()):
                raise UserError(
                    f"'{prefix}': {name} '{getattr(cell, name)}' is not in this study ({', '.join(values)})"
                )
        last = self.study.config["diffusion"]["steps"] - 1
        if not 1 <= cell.steps <= last:
            raise UserError(f"'{prefix}': steps is {cell.steps}, but must be from 1 to {last} (under diffusion.steps)")
        if not 0 <= cell.cfg < math.inf:
            raise UserError(f"'{prefix}': cfg is {cell.cfg:g}, but must be a finite number from 0")
        if cell.task == "superres" and cell.cfg != 1:
            raise UserError(f"'{prefix}': cfg is {cell.cfg:g}, but super-resolution is unguided: it must be 1")
        return [cell]

    def is_scored(self, cell: Cell) -> bool:
        """Whether ``cell`` draws the tuning and held-out prompts, beside the gallery."""
        return cell in self.scored or cell.path not in self._by_prefix

    def generation_jobs(self, prefix: str | None = None) -> list[str]:
        """Prefixes of the generation jobs, of the whole study or those that ``prefix`` needs."""
        cells = self.cells if prefix is None else self.under(prefix)
        if prefix is not None and prefix.count("/") >= LEVELS.index(self.study.config["sampling"]["cells_per_job"]):
            return [prefix]
        return list(dict.fromkeys(map(self.generation_job, cells)))

    def generation_job(self, cell: Cell) -> str:
        """Prefix of the generation job that draws ``cell``."""
        return cell.prefix(self.study.config["sampling"]["cells_per_job"])

    def scoring_jobs(self) -> list[str]:
        """Prefixes of the scoring jobs: one a task or one a model."""
        level = "task" if self.study.config["sampling"]["cells_per_job"] == "model" else "model"
        return list(dict.fromkeys(cell.prefix(level) for cell in self.cells if cell in self.scored))
