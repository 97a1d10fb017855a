"""A cell: one measurement of the study, and the path that is its identity."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

from ldmscale.errors import UserError

TASKS = ("t2i", "interpolation", "superres", "dreambooth", "codi", "guided")
ON_PROMPTS = ("t2i", "codi", "guided")  # those that draw the study's prompts
LEVELS = ("task", "model", "weights", "sampler", "steps", "cfg")


@dataclass(frozen=True, order=True)
class Cell:
    """One measurement: ``model`` with ``weights`` (``stage-step``, or ``published``), in ``steps`` at guidance ``cfg``.

    Stages are pretrain, superres, codi and, one a subject and one a student, dreambooth_<subject> and guided_s<steps>.

    ``cfg`` is g in eps_null + g (eps_cond - eps_null); 1 is unguided. The prompts and starting noises are the same
    for every cell of a task, so cells compare pairwise.
    """

    task: str
    model: str
    weights: str
    sampler: str
    steps: int
    cfg: float

    @cached_property
    def path(self) -> str:
        """``task=t2i/model=145M/weights=pretrain-500000/sampler=ddim/steps=50/cfg=7.5``; written once, as planning
        asks for it some twenty times."""
        return "/".join(f"{name}={_text(getattr(self, name))}" for name in LEVELS)

    def prefix(self, level: str) -> str:
        """The path down to ``level``, one of :data:`LEVELS`."""
        return self.path.rsplit("/", len(LEVELS) - 1 - LEVELS.index(level))[0]

    @property
    def train_step(self) -> int:
        """The optimiser step of ``weights``; 0 where they were not trained here."""
        step = self.weights.rpartition("-")[2]
        return int(step) if step.isdecimal() else 0

    @property
    def subject(self) -> str:
        """The DreamBooth subject that ``weights`` were finetuned on (of guided distillation, s<steps>), or empty."""
        return self.weights.rpartition("-")[0].partition("_")[2]

    @property
    def evaluates_twice(self) -> bool:
        """Whether a step is guided by a second evaluation; a student of guided distillation is told the weight."""
        return self.cfg != 1.0 and self.task != "guided"

    @classmethod
    def parse(cls, path: str) -> Cell:
        """The cell whose :attr:`path` is ``path``; ``UserError`` if it is not written exactly so."""
        pairs = [part.partition("=") for part in path.strip("/").split("/")]
        if [name for name, _, _ in pairs] != list(LEVELS):
            raise UserError(f"'{path}' is not a cell: write {'/'.join(f'{name}=...' for name in LEVELS)}")
        values = {name: value for name, _, value in pairs}
        try:
            cell = cls(**{f.name: _CASTS.get(f.name, str)(values[f.name]) for f in fields(cls)})
        except ValueError:
            raise UserError(f"'{path}' is not a cell: steps must be a whole number and cfg a number") from None
        if cell.path != path.strip("/"):
            raise UserError(f"'{path}' is not how that cell is written: use '{cell.path}'")
        return cell

    def at(self, **changes: object) -> Cell:
        """This cell with some coordinates changed."""
        return replace(self, **changes)


_CASTS = {"steps": int, "cfg": float}


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)  # two cells never share a path
