"""The paper's statements, from claims.yaml, each evaluated on a run's scores table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ldmscale.analysis.claims_budget import large_budget, same_for_samplers, small_budget
from ldmscale.analysis.claims_distilled import codi_factor, distilled
from ldmscale.analysis.claims_guidance import guidance_depends_on_steps
from ldmscale.analysis.claims_subjects import dreambooth_size, dreambooth_tiers, straighter_with_size
from ldmscale.analysis.claims_superres import (
    superres_follows,
    superres_large_budget,
    superres_longer,
    superres_size,
    superres_small_budget,
)
from ldmscale.analysis.claims_training import (
    advantage_settles,
    metrics_agree,
    size_at_first_checkpoint,
    size_at_setting,
    training_compute,
)
from ldmscale.analysis.families import within_a_family
from ldmscale.analysis.findings import CANNOT_TELL, NAMES, Finding, Number, Run, Unclear
from ldmscale.cells.cell import TASKS, Cell
from ldmscale.errors import UserError

CLAIMS = Path(__file__).with_name("claims.yaml")
COMPARES = ("models", "training", "settings")
# (run, metric, **parameters) -> an Outcome or a Finding
TESTS: dict[str, Callable[..., Any]] = {
    test.__name__: test
    for test in (
        advantage_settles,
        codi_factor,
        distilled,
        dreambooth_size,
        dreambooth_tiers,
        guidance_depends_on_steps,
        large_budget,
        metrics_agree,
        same_for_samplers,
        size_at_first_checkpoint,
        size_at_setting,
        small_budget,
        straighter_with_size,
        superres_follows,
        superres_large_budget,
        superres_longer,
        superres_size,
        superres_small_budget,
        training_compute,
    )
}


@dataclass(frozen=True)
class Claim:
    """An entry of claims.yaml, which explains its keys."""

    id: str
    section: str
    statement: str
    task: str
    compares: str
    test: str
    metrics: list[str]
    refuted_by: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """A claim with what the run says of it: by its own metric, and ``under`` the others that the table has."""

    claim: Claim
    finding: Finding
    under: dict[str, Finding]


def load_claims(path: str | Path = CLAIMS) -> list[Claim]:
    """The claims of a file, in its order.

    Raises:
        UserError: an entry lacks a key or has one too many, an id comes twice, or a test, metric or task is unknown.
    """
    entries = yaml.safe_load(Path(path).read_text())
    known = {f.name for f in fields(Claim)}
    claims: dict[str, Claim] = {}
    for entry in entries:
        where = f"the claim '{entry.get('id', '?')}' in {path}"
        wrong = (known - {"parameters"} - set(entry)) or set(entry) - known
        if wrong:
            raise UserError(f"{where} must have the keys {', '.join(sorted(known))}: see '{min(wrong)}'")
        claim = Claim(**entry)
        if claim.id in claims:
            raise UserError(f"{where} is there twice")
        choices = [("test", claim.test, TESTS), ("task", claim.task, TASKS), ("compares", claim.compares, COMPARES)]
        for key, value, allowed in [*choices, *(("metric", metric, NAMES) for metric in claim.metrics)]:
            if value not in allowed:
                raise UserError(f"{where} has the {key} '{value}': use one of {', '.join(allowed)}")
        claims[claim.id] = claim
    return list(claims.values())


def evaluate(scores: pd.DataFrame, experiments: Mapping[str, Sequence[Cell]], claims: Sequence[Claim]) -> list[Judged]:
    """What a run says of each of ``claims``.

    ``experiments`` maps experiment names to their cells. Claims are of one family of networks: of a study that has
    transformers beside U-Nets, the U-Nets are judged. A claim whose task or experiment is absent, or too small to
    say anything, comes out as *cannot tell* with the reason as its note.
    """
    scores, experiments = within_a_family(scores, experiments)
    run = Run(scores, experiments)
    found = []
    for claim in claims:
        first, *others = claim.metrics
        mine = scores[scores["task"] == claim.task]
        here = [metric for metric in others if metric in mine and mine[metric].notna().any()]
        under = {metric: judge(claim, run, metric) for metric in here}
        found.append(Judged(claim, judge(claim, run, first), under))
    return found


def judge(claim: Claim, run: Run, metric: str) -> Finding:
    """What ``run`` says of ``claim`` by ``metric``."""
    try:
        run.of(claim.task)
        outcome = TESTS[claim.test](run, metric, **claim.parameters)
    except Unclear as reason:
        return Finding(claim.id, claim.section, claim.statement, CANNOT_TELL, [], str(reason))
    return Finding(claim.id, claim.section, claim.statement, outcome.verdict, outcome.numbers, outcome.note)


def claims_json(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """``judged`` as JSON-able values: an absent interval is null, an infinity the string "inf" or "-inf"."""
    return [
        {f.name: getattr(each.claim, f.name) for f in fields(Claim)}
        | _finding_json(each.finding)
        | {"under": {metric: _finding_json(finding) for metric, finding in each.under.items()}}
        for each in judged
    ]


def from_json(entries: Sequence[Mapping[str, Any]]) -> list[Judged]:
    """What :func:`claims_json` wrote."""
    found = []
    for entry in entries:
        claim = Claim(**{f.name: entry[f.name] for f in fields(Claim)})
        finding = _from_json(claim, entry)
        under = {metric: _from_json(claim, other) for metric, other in entry["under"].items()}
        found.append(Judged(claim, finding, under))
    return found


def numbers_json(numbers: Sequence[Number]) -> list[dict[str, Any]]:
    """Numbers as JSON-able values (see :func:`claims_json`)."""
    return [{"label": n.label} | {key: _plain(getattr(n, key)) for key in ("value", "low", "high")} for n in numbers]


def numbers_from_json(entries: Sequence[Mapping[str, Any]]) -> list[Number]:
    """What :func:`numbers_json` wrote."""

    def value(entry: Mapping[str, Any], key: str) -> float:
        return math.nan if entry[key] is None else float(entry[key])

    return [Number(entry["label"], *(value(entry, key) for key in ("value", "low", "high"))) for entry in entries]


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return str(float(value)) if math.isinf(value) else float(value)


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {"verdict": finding.verdict, "note": finding.note, "numbers": numbers_json(finding.numbers)}


def _from_json(claim: Claim, entry: Mapping[str, Any]) -> Finding:
    numbers = numbers_from_json(entry["numbers"])
    return Finding(claim.id, claim.section, claim.statement, entry["verdict"], numbers, entry["note"])
