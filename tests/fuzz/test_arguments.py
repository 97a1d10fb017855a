"""The command line with any arguments and files: an answer, or a status and a sentence; never a traceback."""

import json
import os
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import REPO, SCHEMA
from hypothesis import given
from hypothesis import strategies as st
from planning import examples

from ldmscale.cli.main import main


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder to run commands in, with files that are not what their names say."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copy(REPO / "config.yaml", folder)
    shutil.copy(REPO / "configs" / "smoke.yaml", folder)
    (folder / "schemas").symlink_to(SCHEMA.parent)
    results = folder / "results" / "embedded"
    for name in ("logs", "data", "figures", "empty"):
        (results / name).mkdir(parents=True)
    shutil.copy(REPO / "config.yaml", results)
    (results / "data" / "data.json").write_text("[1]")
    (results / "costs.json").write_bytes(b"\xff\0")
    (results / "figures" / "fig09.png").write_bytes(b"no image")
    (results / "scores.parquet").write_bytes(b"PAR1 and no table")
    (results / "logs" / "long.log").write_text("[    0.1 s] process 1 on here\n" + "x" * 9000)
    (results / "logs" / "odd.log").write_text(
        "[  1.2.3 s] process 99999999999999999999 on here\n\udcff", errors="surrogateescape"
    )
    (results / "logs" / "none.log").write_bytes(os.urandom(300))
    pq.write_table(pa.table({"cell": [1]}), folder / "other.parquet")
    names = ("cell", "split", "task", "model", "weights", "sampler", "steps", "cfg", "params", "n", "trainings", "cost",
             "norm_cost", "fid")  # fmt: skip
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in names}), folder / "texts.parquet")
    pq.write_table(pa.table({name: [None, None] for name in names}), folder / "nulls.parquet")
    (folder / "bad.yaml").write_text("seed: [\n")
    (folder / "odd.yaml").write_text("models: {}\n")
    broken = folder / "results" / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("study: 3\nmodels: 7\nexperiments: [1]\n")
    (broken / "scores.parquet").write_text("")
    return folder


def answer(study, monkeypatch, capsys, *arguments):
    """What ``ldmscale arguments`` says, held to what every answer is: (status, standard output, standard error)."""
    monkeypatch.chdir(study)
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse's
        status = end.code
    out, err = capsys.readouterr()
    assert status in (0, 1, 2)
    assert "Traceback" not in out + err
    if status and arguments[0] != "why":
        assert re.search(r"^(ldmscale( \w+)?: )?error: .", err, re.M), err
    return status, out, err


VALUES = ["", " ", "0", "-1", "1", "2", "3.5", "nan", "inf", "1e400", "9" * 5000, "x", "x,y", ",", "8x8", "0x0",
          "x8", "-", "--", "..", "/", "a\0b", "\udcff", "a\nb", "\x1b[31m", "é" * 300, "smoke.yaml", "bad.yaml",
          "odd.yaml", ".", "results", "results/embedded", "results/embedded/scores.parquet",
          "results/broken/scores.parquet", "other.parquet", "texts.parquet", "nulls.parquet", "/dev/null", "f8",
          "39M", "all", "ddim", "fid", "cost", "final", "gs:/", "32", "64", "~", "config.yaml"]  # fmt: skip
OPTIONS = {
    "family": ["--config", "--filters", "--latent-size", "--context", "--json"],
    "estimate": ["--config", "--models", "--images", "--chip", "--mfu", "--price", "--json"],
    "sample": [
        "--model",
        "--pipeline",
        "--config",
        "--weights",
        "--prompt",
        "--count",
        "--sampler",
        "--steps",
        "--cfg",
        "--spacing",
        "--seed",
        "--batch",
        "--out",
    ],  # fmt: skip
    "export": ["--model", "--config", "--weights"],
    "score": ["--inception", "--batch", "--replicates", "--json"],
    "advise": ["--budget", "--axis", "--metric", "--sampler", "--weights", "--task", "--scores", "--top", "--json"],
    "why": ["--all"],
    "watch": [],
    "preflight": ["--model", "--filters", "--topology", "--program", "--batch", "--latent-size", "--fsdp", "--json"],
}
# With these each comes as far as the values of the others.
NEEDED = {"sample": ["--model", "f8", "--prompt", "x", "--out", "out"], "export": ["--model", "f8", "out"],
          "score": ["results", "results"], "advise": ["--budget", "3"],
          "why": ["results/embedded/scores.parquet"]}  # fmt: skip


@examples(30)
@given(data=st.data())
def test_arguments_of_any_content(study, monkeypatch, capsys, data):
    def pick(values):
        return values[data.draw(st.integers(0, len(values) - 1))]

    command = pick(list(OPTIONS))
    arguments = list(NEEDED.get(command, [])) if data.draw(st.integers(0, 3)) else []
    for _ in range(data.draw(st.integers(0, 3))):
        flag = pick([*OPTIONS[command], ""])
        arguments += [flag] if flag in ("--json", "--all") else [*filter(None, [flag]), pick(VALUES)]
    answer(study, monkeypatch, capsys, command, *arguments)


FILES = ["scores.parquet", "costs.json", "data/data.json", "figures/fig09.png", "figures/fig99.png", "..", ".", "gone",
         "cells/x", "cells/task=t2i/model=f8/weights=pretrain-200/sampler=ddim/steps=x/cfg=1/scores.json",
         "cells/task=superres/model=nobody/generated.json", "models/f8", "models/f8/x.json", "encoders/x.json",
         "validation.json", "trainings.parquet", "../../../etc/passwd", "logs/long.log",
         "cells/task=t2i/generated.json", "models/nobody/pretrain.json", "a\nb", "x" * 300]  # fmt: skip


@pytest.mark.parametrize("study_name", ["embedded", "broken"])
def test_why_of_any_file(study, monkeypatch, capsys, study_name):
    for file in FILES:
        status, out, err = answer(study, monkeypatch, capsys, "why", f"results/{study_name}/{file}")
        assert status in (1, 2) and (err.startswith("error: ") or " is " in out), (file, out, err)


@pytest.mark.parametrize(
    "table", ["other", "texts", "nulls", "results/embedded/scores", "results/broken/scores", "gone"]
)
def test_advice_from_what_is_no_table(study, monkeypatch, capsys, table):
    status, _, err = answer(study, monkeypatch, capsys, "advise", "--budget", "3", "--scores", f"{table}.parquet")
    assert status == 1 and f"{table}.parquet" in err


def test_logs_of_any_content_are_watched(study, monkeypatch, capsys):
    status, out, _ = answer(study, monkeypatch, capsys, "watch", "results/embedded")
    assert status == 0 and "long" in out and "odd" not in out
    assert answer(study, monkeypatch, capsys, "watch", "results/broken")[0] == 1
    assert json.loads(answer(study, monkeypatch, capsys, "family", "--json")[1])["models"]
