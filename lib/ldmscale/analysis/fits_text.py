"""Fits and crossovers in words: a part of the summary, and the tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ldmscale.analysis.fits import FINAL, FRONTIER, LOSS
from ldmscale.analysis.selection import METRIC_NAMES
from ldmscale.analysis.study import SAMPLER_NAMES

Record = Mapping[str, Any]
AXIS_NAMES = {"params": "parameters", "train_flops": "training FLOPs"}
HOW = """A power law is a straight line in a log-log plot, fitted by least squares in log y; with a floor it levels \
off. Intervals (95%) cover other prompts or images, and the scatter of the points about the curve, so few points give \
wide ones. A floor is *not determined* where its interval touches zero or the last measured value; its exponent then \
means nothing either and is not given. *Left out*: the largest x, predicted from the others."""


def fits_section(content: Mapping[str, Sequence[Record]]) -> str:
    """The summary's part on fits: ``content`` is that of ``fits.json`` (:func:`ldmscale.analysis.fits.study_fits`)."""
    parts = ["## Fits", HOW, _laws(content["fits"]), _optimum(content["optimum"])]
    crossed = [r for r in content["crossover"] if r["axis"] == "cost"]
    if crossed:
        parts.append(
            "### From which sampling cost the next larger model wins\n\n"
            "The cost from which the larger of two neighbouring sizes is better at that and every greater cost (steps "
            "and guidance chosen on tuning prompts, FIDs of held-out ones; costs between those sampled are "
            "interpolated).\n\n" + _crossover_table(crossed)
        )
    return "\n\n".join(part for part in parts if part)


def fits_markdown(content: Mapping[str, Sequence[Record]]) -> str:
    """``tables/fits.md``: every fit, and the compute-optimal size."""
    rows = [
        [name_of(r["metric"]), AXIS_NAMES[r["against"]], _markup(r["over"]), "with floor" if r["law"] == "floor" else
         "power", str(r["n"]), _exponent(r), _floor(r), f"{r['r2']:.3f}", _left_out(r)]
        for r in content["fits"]
    ]  # fmt: skip
    head = ["Metric", "Against", "Points", "Law", "n", "Exponent b", "Floor", "R2", "Left out: predicted, measured"]
    return "\n\n".join(part for part in (_table(head, rows), HOW, _optimum(content["optimum"])) if part) + "\n"


def crossover_markdown(content: Mapping[str, Sequence[Record]]) -> str:
    """``tables/crossover.md``: every crossover, on every cost axis."""
    return _crossover_table(content["crossover"]) + "\n"


def name_of(metric: str) -> str:
    return "Validation loss" if metric == LOSS else METRIC_NAMES[metric]


def crossover_words(record: Record) -> str:
    """Where the larger model starts to win, with its interval: "4.1 (3.2 to 5)", "not up to 20", "from 2 on"."""
    value, least, most = record["crossover"], record["least"], record["most"]
    if math.isnan(value):
        return "no cost that both were sampled at"
    words = {-math.inf: f"from {_cost(least)} on, the least that both can spend", math.inf: f"not up to {_cost(most)}"}
    text = words.get(value, _cost(value))
    if math.isnan(record["low"]):
        return text
    ends = [{-math.inf: f"{_cost(least)} or less", math.inf: f"beyond {_cost(most)}"}.get(v, _cost(v))
            for v in (record["low"], record["high"])]  # fmt: skip
    return f"{text} (95% interval {' to '.join(dict.fromkeys(ends))})"


def _laws(fits: Sequence[Record]) -> str:
    rows = []
    for r in fits:
        if r["over"] in (FINAL, FRONTIER):
            rows.append([name_of(r["metric"]), f"{AXIS_NAMES[r['against']]}, {_markup(r['over'])} (n = {r['n']})",
                         "with floor" if r["law"] == "floor" else "power", _exponent(r), _floor(r), f"{r['r2']:.3f}",
                         _left_out(r)])  # fmt: skip
    if not rows:
        return "Too few checkpoints or models for a fit (a power law needs three, one with a floor four)."
    head = ["", "Against", "Law", "Exponent b", "Floor", "R2", "Left out: predicted, measured"]
    text = f"*Frontier*: the checkpoints that nothing trained for less compute beats.\n\n{_table(head, rows)}"
    return f"### How loss and FID fall with size and training compute\n\n{text}"


def _optimum(found: Sequence[Record]) -> str:
    lines = []
    for r in found:
        if not r["pairs"]:
            continue
        each = "; ".join(f"{_markup(p['larger'])} overtakes {_markup(p['smaller'])}: {_compute(p)}" for p in r["pairs"])
        if r["exponent"]:
            e = r["exponent"]
            size = f"The compute-optimal size grows as compute to the {_interval(e['value'], e['low'], e['high'])}."
        else:
            size = (f"The exponent of the compute-optimal size is not determined: it takes two such points (three "
                    f"models on the frontier) in nearly every resample, this run has {r['n']}.")  # fmt: skip
        lines.append(f"- **{name_of(r['metric'])}**: {each}. {size}")
    if not lines:
        return ""
    head = "### The compute-optimal size\n\nTraining FLOPs at which the next larger model overtakes:\n\n"
    return head + "\n".join(lines)


def _compute(pair: Record) -> str:
    value = pair["compute"]
    if math.isnan(value):
        return "no compute that both were measured at"
    if value == math.inf:
        return f"not by {_flops(pair['most'])}, the last that both were measured at"
    if value == -math.inf:
        return f"already at {_flops(pair['least'])}, the first that both were measured at"
    if math.isnan(pair["low"]):
        return _flops(value)
    least, most = f"before {_flops(pair['least'])}", f"after {_flops(pair['most'])}"
    low, high = (least if v == -math.inf else most if v == math.inf else _flops(v) for v in (pair["low"], pair["high"]))
    return f"{_flops(value)} ({low} to {high})"


def _exponent(r: Record) -> str:
    return _interval(r["exponent"], r["exponent_low"], r["exponent_high"]) if r["determined"] else "not determined"


def _floor(r: Record) -> str:
    if r["law"] != "floor":
        return ""
    if r["determined"]:
        return _interval(r["floor"], r["floor_low"], r["floor_high"])
    return f"not determined ({_cost(r['floor_low'])} to {_cost(r['floor_high'])})"


def _left_out(r: Record) -> str:
    if math.isnan(r["predicted"]):
        return ""
    return f"{_interval(r['predicted'], r['predicted_low'], r['predicted_high'])}; {_cost(r['measured'])}"


def _interval(value: float, low: float, high: float) -> str:
    return _cost(value) if math.isnan(low) else f"{_cost(value)} ({_cost(low)} to {_cost(high)})"


def _flops(value: float) -> str:
    return f"{value:.2e}".replace("e+", "e")


def _cost(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}"


def _crossover_table(records: Sequence[Record]) -> str:
    axes = {r["axis"] for r in records}
    rows = [
        [SAMPLER_NAMES[r["sampler"]], METRIC_NAMES[r["metric"]], *([r["axis"]] if len(axes) > 1 else []),
         f"{_markup(r['smaller'])} to {_markup(r['larger'])}", crossover_words(r)]
        for r in records
    ]  # fmt: skip
    axis = ["Cost axis"] if len(axes) > 1 else []
    return _table(["Sampler", "Metric", *axis, "From, to", "The larger wins from"], rows)


def _markup(text: str) -> str:
    from ldmscale.analysis.summary import markdown_text  # here: the summary reads this module

    return markdown_text(text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
