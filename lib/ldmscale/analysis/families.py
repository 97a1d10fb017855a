"""Two families of networks in one study: the one that the paper's claims are about, and which does better at a cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ldmscale.analysis.frontier import at_budgets, check_axis, winners
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import METRICS, replicates, select
from ldmscale.analysis.study import ModelInfo, format_count
from ldmscale.cells.cell import Cell
from ldmscale.config.study import DIT, UNET

NAMES = {UNET: "U-Net", DIT: "transformer"}
Experiments = Mapping[str, Sequence[Cell]]


def family_of(scores: pd.DataFrame) -> pd.Series:
    """The family of each row; a table that does not say has U-Nets."""
    return scores["family"] if "family" in scores else pd.Series(UNET, scores.index)


def network_name(models: Sequence[ModelInfo]) -> str:
    """What ``models`` are called: "U-Net" or "transformer", or "network" where there are both."""
    families = {m.family for m in models}
    return NAMES[families.pop()] if len(families) == 1 else "network"


def within_a_family(scores: pd.DataFrame, experiments: Experiments) -> tuple[pd.DataFrame, dict[str, list[Cell]]]:
    """The table and the experiments of the U-Nets alone, which laws and claims of model size are about; of a study
    that has none, as they are."""
    families = family_of(scores)
    mine = scores[families == UNET] if (families == UNET).any() else scores
    names = set(mine["model"])
    return mine, {name: [c for c in cells if c.model in names] for name, cells in experiments.items()}


def contest(rows: pd.DataFrame, axis: str = "cost", metric: str = "fid") -> pd.DataFrame:
    """Which family has the better model at or under each cost on ``axis``, from the least that both can spend on.

    Budgets are the costs of ``rows`` (both splits). Each family's model, steps and guidance weight are chosen on tuning
    prompts; columns: budget, ``unet`` and ``dit`` (the models), ``difference`` (the transformer's ``metric`` minus the
    U-Net's, on held-out prompts), its 95% interval ``low`` to ``high`` (NaN without replicates), and ``winner``, the
    family that the interval is clear for, or empty. Empty where one family is absent.
    """
    check_axis(rows, axis)
    of = {family: rows[family_of(rows) == family] for family in (UNET, DIT)}
    if any(mine.empty for mine in of.values()):
        return pd.DataFrame()
    least = max(mine[axis].min() for mine in of.values())
    costs = {float(f"{cost:.9g}") for cost in rows[axis]}
    budgets = sorted(cost for cost in costs if cost >= least * (1 - 1e-6))
    best = {family: winners(at_budgets(mine, budgets, axis, metric), metric) for family, mine in of.items()}
    found = []
    for unet, dit in zip(*(best[family].itertuples() for family in (UNET, DIT)), strict=True):
        a, b = (best[family].iloc[[row.Index]] for family, row in ((UNET, unet), (DIT, dit)))
        difference = float(b[metric].iloc[0] - a[metric].iloc[0])
        low, high = interval(difference, replicates(b, metric)[0] - replicates(a, metric)[0])
        found.append({"budget": unet.budget, UNET: unet.model, DIT: dit.model, "difference": difference, "low": low,
                      "high": high, "winner": _winner(low, high, METRICS[metric])})  # fmt: skip
    return pd.DataFrame(found)


def _winner(low: float, high: float, sign: int) -> str:
    """The family that a transformer's difference from low to high is clear for; ``sign`` is an improvement's."""
    if low * high <= 0 or np.isnan(low):
        return ""
    return DIT if sign * low > 0 else UNET


def contest_words(found: pd.DataFrame) -> str:
    """:func:`contest`'s answer in a sentence a stretch of costs, each with the interval at the last of the stretch."""
    parts = []
    stretch = (found["winner"] != found["winner"].shift()).cumsum()
    for _, mine in found.groupby(stretch):
        first, last = mine.iloc[0], mine.iloc[-1]
        who = f"{NAMES[last['winner']]}s win" if last["winner"] else "neither family is surely better"
        where = f"at cost {format_count(first['budget'])}"
        if len(mine) > 1:
            where = f"at costs {format_count(first['budget'])} to {format_count(last['budget'])}"
        sure = "" if np.isnan(last["low"]) else f", 95% interval {last['low']:+.3g} to {last['high']:+.3g}"
        at = f" at {format_count(last['budget'])}" if len(mine) > 1 else ""
        parts.append(f"{where} {who} ({last[DIT]} minus {last[UNET]}{at}: {last['difference']:+.3g}{sure})")
    return "; ".join(parts)


def families_section(scores: pd.DataFrame, experiments: Experiments) -> str:
    """The summary's part on the two families, of the experiment ``grid`` drawn by DDIM; empty where it has not both."""
    rows = select(scores, experiments.get("grid", ()))
    found = contest(rows[rows["sampler"] == "ddim"])
    if found.empty:
        return ""
    from ldmscale.analysis.summary import markdown_text  # here: the summary reads this module

    words = markdown_text(contest_words(found))
    return (
        "## U-Nets and transformers at a sampling cost\n\nThe best of each family at or under a cost (model, steps and "
        "guidance chosen on tuning prompts), compared by FID on held-out prompts; transformers' cost is counted in the "
        f"same unit. {words[:1].upper()}{words[1:]}.\n\nA family is *surely* better where the 95% interval of the "
        "difference is clear of zero. The sizes of the two families, and what they were trained for, are the config's."
    )
