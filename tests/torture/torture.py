"""`make torture`: faults at random moments, each run compared file by file with one that nothing disturbed.

A fault survives if what follows it ends with the files of the undisturbed run, or refuses in a sentence that names the
file. Anything else is silent: wrong files under a good exit status, a traceback, a hang. Prints a line a fault and the
count; exit status 1 if one was silent.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIB = str(HERE.parents[1] / "lib")
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "workflow"), LIB]
os.environ["PYTHONPATH"] = LIB  # of the jobs too, where another checkout is installed

import job_faults  # noqa: E402
import run_faults  # noqa: E402
from outcomes import EQUAL, REFUSED, SILENT, SKIPPED  # noqa: E402
from study import TARGETS, Reference, undisturbed  # noqa: E402

# Each kind of fault, and how often it is to come: those of a whole run take as long as dozens of the others.
KINDS = {
    "damaged": (job_faults.damaged, 12),
    "killed": (job_faults.killed, 6),
    "filled": (job_faults.filled, 4),
    "readonly": (job_faults.readonly, 2),
    "starved": (job_faults.starved, 3),
    "cached": (job_faults.cached, 2),
    "chain": (run_faults.chain, 1),
    "twice": (run_faults.twice, 1),
    "edited": (run_faults.edited, 1),
    "clock": (run_faults.clock, 1),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=TARGETS, help="what of the study to make (default: all of it)")
    parser.add_argument("--minutes", type=float, default=14.0, help="begin no fault after so long (default: 14)")
    parser.add_argument("--faults", type=int, default=10**6, help="nor after so many (default: no bound)")
    parser.add_argument("--seed", type=int, default=None, help="repeat the faults of an earlier run")
    parser.add_argument("--only", choices=list(KINDS), action="append", help="these kinds of faults alone")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as root:
        place = Path(root)
        reference = undisturbed(place, args.targets)
        print(f"seed {seed}; undisturbed: {len(reference.files)} files, {reference.seconds:.0f} s", flush=True)
        counts = torture(reference, place, seed, began + 60 * args.minutes, args.faults, args.only or list(KINDS))
    return report(counts)


def torture(reference: Reference, place: Path, seed: int, end: float, most: int, kinds: list[str]) -> Counter:
    """Faults until ``end`` (of the monotonic clock) or ``most`` -> how many of each (kind, outcome)."""
    jobs = {job.rule for job in reference.jobs}
    preload(jobs)
    order = [kind for kind in kinds for _ in range(KINDS[kind][1])]
    random.Random(seed).shuffle(order)
    counts: Counter = Counter()
    for number, kind in enumerate(itertools.cycle(order)):
        if time.monotonic() > end or counts.total() >= most:
            return counts
        rng, where, since = random.Random(f"{seed}-{number}"), place / f"fault-{number}", time.monotonic()
        for what, outcome in KINDS[kind][0](reference, where, rng):
            counts[kind, outcome.partition(":")[0]] += 1
            print(f"{number:4d} {kind:9s} {what:75s} {outcome}  ({time.monotonic() - since:.0f} s)", flush=True)
        shutil.rmtree(where, ignore_errors=True)
    return counts


def preload(rules: set[str]) -> None:
    """Import what the jobs import, once for all of their forks."""
    import snakemake.script  # noqa: F401

    import ldmscale.analysis.trainings
    import ldmscale.data.sources
    import ldmscale.metrics.gather
    import ldmscale.metrics.scores_file  # noqa: F401

    if rules & {"pretrain", "generate", "score"}:
        import ldmscale.figures
        import ldmscale.generation.cells
        import ldmscale.generation.latents
        import ldmscale.metrics.score
        import ldmscale.metrics.scorers
        import ldmscale.tasks.pretrain
        import ldmscale.training.loop  # noqa: F401


def report(counts: Counter) -> int:
    """Print what came of each kind of fault, and the sum; the exit status."""
    columns = (EQUAL, REFUSED, SKIPPED, SILENT)
    print(f"\n{'':10s}" + "".join(f"{name:>9s}" for name in columns))
    for kind in KINDS:
        if any(counts[kind, name] for name in columns):
            print(f"{kind:10s}" + "".join(f"{counts[kind, name]:9d}" for name in columns))
    sums = {name: sum(n for (_, outcome), n in counts.items() if outcome == name) for name in columns}
    tried = counts.total() - sums[SKIPPED]
    survived = sums[EQUAL] + sums[REFUSED]
    print(f"{tried} faults, {survived} survived, {sums[SILENT]} silent, {sums[SKIPPED]} skipped")
    return 1 if sums[SILENT] or not tried else 0


if __name__ == "__main__":
    sys.exit(main())
