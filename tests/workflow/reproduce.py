"""The smoke study made twice, in two folders, on other numbers of cores and in another order of jobs, and compared file
by file; or two finished studies compared.

    python tests/workflow/reproduce.py [FOLDER]         makes both under FOLDER (else a temporary one) and compares
    python tests/workflow/reproduce.py --compare A B    compares results folders, such as one/results/smoke

Prints each file that differs, then the counts by kind; the exit status is 1 where one differs. Files are equal byte for
byte, but for what tells how long things took and when: logs, benchmarks and event files are left out, and measured
seconds (:data:`MEASURED`) are taken out of the table, the timing, the metrics of a training and what is made from them.
"""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

REPO = Path(__file__).resolve().parents[2]
SMOKE = Path("results/smoke")
LEFT_OUT = ("logs", "benchmarks", "pages")
# Of their numbers some are seconds that this run measured, in words or drawn: the rest of them is compared elsewhere.
FROM_SECONDS = re.compile(r"figures/latency\.|report\.html$|explorer\.html$|timing\.json$|events\.out\.tfevents\.")
MEASURED = ("seconds", "seconds_machine", "time", "images_per_second")


def content(path: Path) -> object:
    """What is compared of a file: its bytes, or of a file with measured seconds all the others."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        plain = table.drop_columns([name for name in MEASURED if name in table.column_names]).to_pandas()
        return plain.to_json(double_precision=15, orient="split")
    if path.name in ("fits.json", "claims.json"):
        return _timeless(json.loads(path.read_text()))
    if path.name == "crossover.csv":
        with open(path) as file:
            return [row for row in csv.reader(file) if "seconds" not in row]
    if path.name == "crossover.md":
        return [line for line in path.read_text().splitlines() if "| seconds |" not in line]
    if path.name == "metrics.jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]
    return path.read_bytes()


def _timeless(value: object) -> object:
    """JSON without what was read off the axis of seconds, and without the checksum of all."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in (*MEASURED, "crc32")}
    if isinstance(value, list):
        return [_timeless(v) for v in value if not (isinstance(v, dict) and v.get("axis") == "seconds")]
    return value


def files(results: Path) -> dict[str, Path]:
    """A study's files by their names, but those that only tell how long things took."""
    found = {path.relative_to(results).as_posix(): path for path in results.rglob("*") if path.is_file()}
    return {
        name: path
        for name, path in sorted(found.items())
        if not FROM_SECONDS.search(name) and name.split("/")[0] not in LEFT_OUT and not Path(name).name.startswith(".")
    }


def kind(name: str) -> str:
    return "images of cells" if name.endswith(".npy") and name.startswith("cells/") else Path(name).suffix


def differences(one: Path, other: Path, only: str = "") -> tuple[Counter, list[str]]:
    """How many files of each kind two results folders have, and the names of those that are not equal.

    ``only``: a pattern of the names that are compared."""
    left, right = ({n: p for n, p in files(folder).items() if re.search(only, n)} for folder in (one, other))
    differ = sorted(left.keys() ^ right.keys())
    differ += [name for name in left.keys() & right.keys() if content(left[name]) != content(right[name])]
    return Counter(map(kind, left)), sorted(differ)


def make(folder: Path, *arguments: str) -> Path:
    """The smoke study in ``folder``, with compiled programs of its own -> its results."""
    folder.mkdir(parents=True)
    shutil.copy(REPO / "config.yaml", folder)
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "SNAKEMAKE_", "NPROC", "LDMSCALE_"))
    }
    subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments, "--snakefile", REPO / "Snakefile", "--configfile",
         REPO / "configs" / "smoke.yaml", "--quiet", "all"], cwd=folder, env=environment, check=True,
    )  # fmt: skip
    return folder / SMOKE


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--compare"]:
        one, other = map(Path, arguments[1:])
    else:
        place = Path(arguments[0] if arguments else tempfile.mkdtemp(prefix="reproduce-"))
        one = make(place / "one", "--cores", "2")
        late = sorted(path.relative_to(place / "one").as_posix() for path in (one / "figures").glob("*.png"))
        random.Random(0).shuffle(late)  # half of the figures, and all behind them, before anything else
        first = late[: len(late) // 2]
        other = make(place / "other" / "deeper", "--cores", "1", "--scheduler", "greedy", "--prioritize", *first)
    compared, differ = differences(one, other)
    for name in differ:
        print("differs:", name)
    print(f"{compared.total()} files compared ({', '.join(f'{n} {kind}' for kind, n in sorted(compared.items()))}), "
          f"{len(differ)} differ")  # fmt: skip
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
