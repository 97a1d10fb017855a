"""All benchmarks, and docs/benchmarks.md of what they print: `make bench`.

`python benchmarks/all.py [--quick] [--results FOLDER] [--compiled FOLDER]`. Each runs in a process of its own, one
after the other, within 20 minutes together; one that fails or is cut off is named in the page. Rows of the common
columns (measure.py) become one table, what has other columns follows it. With --results a finished study is read too
(whole.py), and with --compiled what its jobs compiled.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from measure import header

from ldmscale.provenance import atomic_path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
COMPARISONS = ("training_step", "sampling", "layers", "grid", "scoring", "data")
LIMIT = 20 * 60  # seconds


def ran(name: str, arguments: list[str], until: float) -> tuple[str, str]:
    """What a benchmark printed, and what went wrong."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    left = max(1.0, until - time.monotonic())
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired as cut:
        return (cut.stdout or b"").decode(), f"`{name}` was cut off: the benchmarks' {LIMIT // 60} minutes were over"
    said = done.stderr.strip().splitlines()
    return done.stdout, f"`{name}` failed: {said[-1] if said else 'it says nothing'}" if done.returncode else ""


def commit() -> str:
    done = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(options: argparse.Namespace) -> None:
    began, rows, others, failures = time.monotonic(), [], [], []
    quick = ["--quick"] if options.quick else []
    todo = {name: quick for name in COMPARISONS if (HERE / f"{name}.py").exists()}
    if options.results:
        todo["whole"] = [options.results, *([options.compiled] if options.compiled else [])]
    for name, arguments in todo.items():
        said, failure = ran(name, arguments, began + LIMIT)
        failures += [failure] if failure else []
        common = header().splitlines()
        if said.startswith(common[0]):
            rows += [line for line in said.splitlines() if line.startswith("|") and line not in common]
        elif said:
            others.append(f"## {name}\n\n{said.strip()}")
    minutes = (time.monotonic() - began) / 60
    parts = [
        "# Benchmarks",
        f"`make bench` wrote this in {minutes:.0f} minutes{' (--quick: few repeats)' if quick else ''}: commit "
        f"{commit()}, {processor()}, {os.cpu_count()} hardware threads. The scripts in [benchmarks](../benchmarks) say "
        "what each line measures. Numbers are medians, taken in turns where both sides are repeated; the ratio is how "
        "many times faster this is than what is beside it, with the least and the greatest of the rounds.",
        "\n".join([header(), *rows]),
        *others,
        *failures,
    ]
    with atomic_path(PAGE) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    print(f"{PAGE}: {len(rows)} rows, {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", metavar="FOLDER")
    parser.add_argument("--compiled", metavar="FOLDER")
    main(parser.parse_args())
