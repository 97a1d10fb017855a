"""On a GPU: forward passes, training steps and guided sampling of 39M to 866M, beside diffusers with `torch.compile`.

`python benchmarks/gpu.py [--sizes 64 128 ...] [--batches 64 128] [--minutes 9] [--out FILE] [--quick]`. Every case is a
process of its own (gpu_case.py), ours and theirs in turns on the same card. What is measured lies in FILE (by default
benchmarks/results/gpu.json, with the command) as soon as it is there: called again, it goes on where it was cut off.
The tables are printed, and beside FILE lies a figure: does a step take as long as its FLOPs say?

A training step is measured at every batch of --batches, ours with activations kept and computed again; the tables show
the way that makes the most images a second, of either side. MFU is the definition's FLOPs over the card's dense
bfloat16 peak, or where that is not listed here over the rate of a matrix product. --quick tries all of it on any
machine, small.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpu_case import Case

from ldmscale.figures.style import add_caption, log_axis, new_figure, style
from ldmscale.provenance import atomic_path

HERE = Path(__file__).resolve().parent
SIDES = "ours", "theirs"
REFERENCE = 320  # filters of normalised cost 1
PARAMETERS = {64: "39M", 96: "83M", 128: "145M", 160: "223M", 192: "318M", 224: "430M", 256: "558M", 320: "866M"}
PEAK = {
    "H100": 989.4e12,
    "H200": 989.4e12,
    "A100": 311.9e12,
    "L4": 121e12,
}  # FLOP/s, dense bfloat16, NVIDIA's data sheets
PHASES = {"forward": "Forward pass", "train": "Training step", "sample": "Guided sampling by DDIM"}
PER_CASE = 5 * 60  # seconds at the most, compilation included


def plan(sizes: list[int], batches: list[int], quick: bool) -> Iterator[Case]:
    """What is to be measured, the two sides in turns, the smallest network first."""
    common: dict[str, Any] = {"latent": 8, "rounds": 2, "calls": 1, "steps": 2} if quick else {}
    yield Case("ours", "product", 512 if quick else 8192, 1, **{**common, "calls": 20})
    for filters in sizes:
        for side in SIDES:
            yield Case(side, "forward", filters, 2 if quick else 32, **common)
        for side in SIDES:
            yield Case(side, "sample", filters, 2 if quick else 16, **{**common, "calls": 1})
        for batch in batches:
            yield Case("ours", "train", filters, batch, **common)
            yield Case("theirs", "train", filters, batch, **common)
            yield Case("ours", "train", filters, batch, remat=True, **common)


def run(case: Case, limit: float) -> dict[str, Any]:
    """What ``case`` measured, or {"error": ...}."""
    command = [sys.executable, str(HERE / "gpu_case.py"), json.dumps(asdict(case))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"longer than {limit:.0f} s"}
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "Error" in line or "RESOURCE_EXHAUSTED" in line]
        return {"error": (said or ["ended without a word"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(cases: list[Case], out: Path, until: float, command: str) -> list[dict[str, Any]]:
    """The records of ``cases`` in the file ``out``, those that are missing measured now, until the time is over."""
    kept = json.loads(out.read_text())["cases"] if out.exists() else []
    for case in cases:
        left = until - time.monotonic()
        if any(record["case"] == asdict(case) for record in kept):
            continue
        if left < PER_CASE / 5:
            print(f"{len(cases) - len(kept)} cases are left: call it again.", file=sys.stderr)
            break
        print(f"{case.side} {case.phase} {case.filters} filters, batch {case.batch} ...", file=sys.stderr, flush=True)
        found = run(case, min(left, PER_CASE))
        if "error" in found and left < PER_CASE:
            break  # cut off by this call's own end
        kept.append({"case": asdict(case), **found})
        with atomic_path(out) as temporary:
            temporary.write_text(json.dumps({"command": command, "cases": kept}, indent=1) + "\n")
    return kept


def rate(record: dict[str, Any]) -> float:
    """Images a second."""
    return record["case"]["batch"] / statistics.median(record["seconds"])


def best(records: list[dict[str, Any]], side: str, phase: str, filters: int) -> dict[str, Any] | None:
    """The way of ``side`` that makes the most images a second."""
    wanted = {"side": side, "phase": phase, "filters": filters}
    found = [r for r in records if "seconds" in r and wanted.items() <= r["case"].items()]
    return max(found, key=rate, default=None)


def peak(records: list[dict[str, Any]]) -> tuple[float, str]:
    """FLOP/s that utilisation is of, and what they are."""
    product = next(r for r in records if r["case"]["phase"] == "product")
    reached = product["flops"] / statistics.median(product["seconds"])
    listed = [peak for name, peak in PEAK.items() if name in product["device"]]
    said = f"a product of bfloat16 matrices reaches {reached / 1e12:.3g} TFLOP/s on {product['device']}"
    return (listed[0], f"peak {listed[0] / 1e12:.0f} TFLOP/s; {said}") if listed else (reached, said)


def tables(records: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown, a table a phase."""
    whole, said = peak(records)
    yield f"MFU of {said}.\n"
    sizes = sorted({r["case"]["filters"] for r in records if r["case"]["phase"] in PHASES})
    for phase, title in PHASES.items():
        yield f"**{title}**\n"
        side = "images/s | MFU | as | peak GB"
        yield f"| size | ours, {side} | diffusers, {side} | ratio | least to greatest |"
        yield "|---|---:|---:|---|---:|---:|---:|---|---:|---:|---:|"
        for filters in sizes:
            both = [best(records, side, phase, filters) for side in SIDES]
            cells = [PARAMETERS.get(filters, f"{filters} filters")]
            for record in both:
                if record is None:
                    cells += ["-"] * 4
                    continue
                used = record["flops"] / statistics.median(record["seconds"]) / whole
                how = f"batch {record['case']['batch']}{', again' if record['case']['remat'] else ''}"
                how += f", {record['case']['steps']} steps" if phase == "sample" else ""
                memory = f"{record['peak_bytes'] / 1e9:.1f}" if record["peak_bytes"] else "-"
                cells += [f"{rate(record):.3g}", f"{100 * used:.1f} %", how, memory]
            if None in both:
                cells += ["-", "-"]
            else:
                each = [[record["case"]["batch"] / s for s in record["seconds"]] for record in both]
                cells += [f"{rate(both[0]) / rate(both[1]):.2f}"]
                cells += [f"{min(each[0]) / max(each[1]):.2f} to {max(each[0]) / min(each[1]):.2f}"]
            yield f"| {' | '.join(cells)} |"
        yield ""
    for record in (r for r in records if "error" in r):
        case = record["case"]
        what = f"{case['side']}, {case['phase']}, {case['filters']} filters, batch {case['batch']}"
        yield f"- {what}{', activations computed again' if case['remat'] else ''}: {record['error']}"


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds of a guided step of an image by its normalised cost, the paper's axis (FLOPs, of 320 filters 1), and
    what they would be at the largest network's rate."""
    looks = {"ours": ("ldmscale", "#1f5fa8", "o"), "theirs": ("diffusers", "#c0562b", "s")}
    sizes = sorted({r["case"]["filters"] for r in records if r["case"]["phase"] == "sample"})
    with style():
        fig = new_figure(4.2, 3.3)
        ax, seen = fig.add_subplot(), []
        for side, (label, colour, marker) in looks.items():
            found = [r for f in sizes if (r := best(records, side, "sample", f))]
            if not found:
                continue
            steps = [2 * r["case"]["steps"] * r["case"]["batch"] for r in found]  # evaluations of a call
            unit = replace(Case(**found[0]["case"]), phase="forward", filters=REFERENCE, batch=1).flops
            costs = [r["flops"] / n / unit for r, n in zip(found, steps, strict=True)]
            times = [1e3 * 2 * statistics.median(r["seconds"]) / n for r, n in zip(found, steps, strict=True)]
            ax.plot(costs, times, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
            ax.plot(costs, [times[-1] * c / costs[-1] for c in costs], color=colour, linewidth=0.8, linestyle=":")
            seen += zip(costs, times, strict=True)
            if side == "ours":
                for record, x, y in zip(found, costs, times, strict=True):
                    name = PARAMETERS.get(record["case"]["filters"], str(record["case"]["filters"]))
                    ax.annotate(name, (x, y), (-4, 5), textcoords="offset points", ha="right", fontsize=6.5)
        for axis, values in zip("xy", zip(*seen, strict=True), strict=True):
            log_axis(ax, axis, values)
        ax.set(xlabel="normalised cost of an evaluation (866M: 1)", ylabel="ms of a guided step, an image")
        ax.margins(0.12)
        ax.legend(loc="lower right", frameon=False)
        device = records[0]["device"]
        add_caption(fig, f"Guided sampling on {device}. Dotted: as the largest network's cost predicts.")
        with atomic_path(path) as temporary:
            fig.savefig(temporary, format="png", dpi=160)


def main(options: argparse.Namespace) -> None:
    cases = list(plan(options.sizes, options.batches, options.quick))
    command = " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    records = measure(cases, options.out, time.monotonic() + 60 * options.minutes, command)
    wanted = [asdict(case) for case in cases]
    records = [record for record in records if record["case"] in wanted]
    if not any(record["case"]["phase"] == "product" and "seconds" in record for record in records):
        sys.exit(f"{options.out}: not even a matrix product was measured: {records[:1]}")
    print("\n".join(tables(records)))
    if any(record["case"]["phase"] == "sample" and "seconds" in record for record in records):
        draw(records, options.out.with_suffix(".png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 192, 256, 320], metavar="FILTERS")
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 128], help="of training; none: no training")
    parser.add_argument("--minutes", type=float, default=9.0, help="until no further case is begun")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args())
