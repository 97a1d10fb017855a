"""``ldmscale advise``: the best model, sampler, steps and guidance under a sampling budget, from a study's table."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmscale.cells.cell import ON_PROMPTS
from ldmscale.cli.options import command, whole
from ldmscale.errors import UserError
from ldmscale.text import visible

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from ldmscale.analysis.advice import Setting

ABOUT = """\
The best (model, weights, sampler, steps, CFG) that a study sampled at or under a sampling budget, the next best, and
whether the difference is more than the luck of the prompts.

Axes of the budget: cost, the paper's (a step of the reference model is 1; norm_cost is another name for it); nfe_cost,
which counts guidance's second evaluation; sampling_tflops, all of an image; seconds, measured. Each model, weights and
sampler stands in the steps and at the CFG that do best on tuning prompts; numbers are of held-out prompts."""
EXAMPLE = """\
  ldmscale advise --budget 6
  ldmscale advise --budget 0.05 --axis seconds --metric cmmd --sampler dpmpp2m
  ldmscale advise --budget 6 --task t2i --scores results/emoji/scores.parquet --json"""
WIDTH = 80


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = command(commands, "advise", "the best model and setting under a sampling budget", ABOUT, EXAMPLE)
    parser.add_argument(
        "--budget", metavar="X", type=_number, required=True, help="what an image may cost, on the axis"
    )
    parser.add_argument("--axis", metavar="NAME", default="cost", help="of the budget (default: cost)")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        default="fid",
        help="fid, clip, cmmd, kid, fid_inf, precision, recall, density, coverage or fd_dino (default: fid)",
    )
    parser.add_argument("--sampler", metavar="NAME", help="this sampler alone: ddim, ddpm, dpmpp2m or codi")
    parser.add_argument("--weights", metavar="NAME", help="these weights alone, such as pretrain-1600")
    parser.add_argument(
        "--task",
        metavar="NAME",
        nargs="+",
        default=ON_PROMPTS,
        choices=ON_PROMPTS,
        help="t2i, codi and guided are the undistilled and the two kinds of distilled models (default: all three)",
    )
    parser.add_argument(
        "--scores", metavar="FILE", help="results/<study>/scores.parquet (default: of the study of ./config.yaml)"
    )
    parser.add_argument("--top", metavar="N", type=whole(), default=5, help="settings to list (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every digit")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the advice."""
    from ldmscale.analysis.advice import ALIASES, advise, caveat

    path, axis = Path(args.scores or _default()), ALIASES.get(args.axis, args.axis)
    scores = _read(path, args.metric)
    settings = advise(scores, args.budget, axis, args.metric, args.sampler, args.weights, args.task)
    shown = settings[: args.top]
    held = scores[(scores["cell"] == shown[0].cell) & (scores["split"] == "heldout")].iloc[0]
    if args.json:
        question = {"budget": args.budget, "axis": axis, "metric": args.metric, "sampler": args.sampler,
                    "weights": args.weights, "tasks": list(args.task), "scores": str(path)}  # fmt: skip
        best, *others = (setting.json() for setting in shown)
        answer = {
            "question": question,
            "best": best,
            "runners_up": others,
            "settings": len(settings),
            "note": caveat(held["trainings"]),
        }
        print(json.dumps(answer, indent=1, allow_nan=False))
    else:
        print(visible(_text(shown, len(settings), args.budget, axis, args.metric, held)))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


def _default() -> Path:
    from ldmscale.config.read import read_study

    try:
        return Path("results") / read_study([]).name / "scores.parquet"
    except UserError as error:
        raise UserError(f"{error}, or give a study's table with --scores results/<study>/scores.parquet") from None


def _read(path: Path, metric: str) -> pd.DataFrame:
    """The columns of the table that advice reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ldmscale.analysis.frontier import COST_AXES
    from ldmscale.analysis.selection import METRICS, SERIES
    from ldmscale.metrics.finite import require_finite

    if not path.is_file():
        raise UserError(
            f"{path} is not there: `snakemake --profile profiles/local {path}` makes it (with --configfile where the "
            "study has one), as `make study` does"
        )
    wanted = ["cell", "split", *SERIES, "steps", "cfg", "params", "n", "trainings", *COST_AXES, *METRICS]
    wanted += [f"{metric}_reps", f"{metric}_features"]
    try:
        schema, texts = pq.read_schema(path), {"cell", "split", *SERIES}
        there, numbers = set(schema.names), {"steps", "cfg", "params", "n", "trainings", "cost"}
        if lost := (texts | numbers) - there:
            raise UserError(f"{path} is no table of scores: it has no column '{min(lost)}'")
        for names, fits in ((texts, _is_text), (numbers, _is_number)):
            if odd := sorted(name for name in names if not fits(schema.field(name).type)):
                raise UserError(f"{path} is no table of scores: its column '{odd[0]}' is {schema.field(odd[0]).type}")
        table = pq.read_table(
            path, columns=[name for name in wanted if name in there], page_checksum_verification=True
        ).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read as a table of scores ({' '.join(str(error).split())}): "
            f"`snakemake --profile profiles/local --forcerun gather {path}` makes it again"
        ) from None
    require_finite(table)
    return table


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as is_

    if is_.is_dictionary(kind):
        kind = kind.value_type
    return is_.is_string(kind) or is_.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow.types as is_

    return is_.is_integer(kind) or is_.is_floating(kind)


def _text(settings: list[Setting], count: int, budget: float, axis: str, metric: str, held: pd.Series) -> str:
    """The advice for a terminal of :data:`WIDTH` columns; ``held`` is the best cell's row of held-out prompts."""
    from ldmscale.analysis.advice import UNKNOWN, caveat, short
    from ldmscale.analysis.frontier import COST_AXES
    from ldmscale.analysis.selection import METRIC_NAMES, METRICS

    best, *others = settings
    name, sure = METRIC_NAMES[metric], any(setting.verdict != UNKNOWN for setting in others)
    rows = [["model", "weights", "sampler", "steps", "CFG", "cost", name, "minus the best"]]
    for setting in others:
        row = [setting.model, setting.weights, setting.sampler, str(setting.steps), short(setting.cfg)]
        row += [short(setting.spent, 3), short(setting.value)]
        ends = f"{short(setting.difference_low, 3)} to {short(setting.difference_high, 3)}"
        rows.append([*row, f"{ends}  {setting.verdict}" if sure else short(setting.difference, 3)])
    blocks = [
        [f"Best within a budget of {short(budget)} ({COST_AXES[axis]})"],
        textwrap.wrap(best.words(axis, metric), WIDTH, initial_indent="  ", subsequent_indent="  "),
        ["Next best"] if others else [f"Nothing else{'' if count == 1 else ' shown'}: {count} within the budget."],
    ]
    if others:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        texts = (0, 1, 2, len(widths) - 1)
        for row in rows:
            cells = [row[i].ljust(w) if i in texts else row[i].rjust(w) for i, w in enumerate(widths)]
            blocks[-1].append("  ".join(cells).rstrip())
        if count > len(settings):
            blocks[-1].append(f"and {count - len(settings)} more within the budget (--top)")
    better = "lower" if METRICS[metric] < 0 else "higher"
    features = held.get(f"{metric}_features")
    on = f" on {features}" if isinstance(features, str) else ""
    notes = f"{name}{on}, {better} is better; n = {held['n']:,} held-out prompts. "
    if others and sure:
        notes += f"Minus the best: 95% interval of the difference in {name}, unsure where it holds zero. "
    elif others:
        notes += "There are no bootstrap replicates, so no intervals. "
    return "\n\n".join("\n".join(block) for block in [*blocks, textwrap.wrap(notes + caveat(held["trainings"]), WIDTH)])
