"""Configs of any content: planned whole, or refused in sentences that name the key; never anything else."""

import copy
import math
import os
import re
import subprocess
import sys

import pytest
from helpers import REPO, SCHEMA, merged
from hypothesis import given
from hypothesis import strategies as st
from planning import examples, planned

from ldmscale.config.read import read_study
from ldmscale.errors import UserError

FEW = {"steps": [4, 50], "cfg": [1.5, 7.5]}  # of the paper's grid, whose 1,700 cells take seconds to plan
CUT = {"experiments": {"grid": FEW, "samplers": FEW}, "figures": {"fig07": {"steps": 50}}}
BASES = [merged(), merged("smoke.yaml"), merged("emoji.yaml"), merged("paper.yaml", CUT)]
# Single values that have broken readers of configs.
ODD = [None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**32, 2**63, 10**30, 10**400, 0.0, -0.0, 0.5, 1.0, 1e-300,
       1e300, 5e-324, -1.5, math.nan, math.inf, -math.inf, "", " ", "all", "null", "1e-4", "f8", "s1", "f8.s1", ".",
       "..", "../up", "/etc/passwd", "a/b", "a\nb", "a\n", "a\0b", "\ud800", "\u202eabc", "x" * 300, "~", "{model}",
       "$HOME", "a,b", "name=value", "task", "grid", "headline", "codi", "dit", "unet", "gs://bucket/x", "gs://",
       "gs:/x", "CON", "é", "e\u0301", "-n", "subjects.json", [], [[]], [None], [0], [1, 1], [1.0], [2, 1], ["all"],
       {}, {"a": 1}, {"name": "f8"}, [{"name": "x", "filters": 8}], [0, 1], [1000], (1, 2), {1, 2}]  # fmt: skip


def places(value, at=()):
    """The path of every key and item below ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*at, key)
        yield from places(below, (*at, key))


def at(config, path):
    for key in path:
        config = config[key]
    return config


def one_of(draw, values):
    """As ``sampled_from``, which takes milliseconds to look at values of all types."""
    return values[draw(st.integers(0, len(values) - 1))]


@st.composite
def mutated(draw):
    """A config of the repository with one to three changes."""
    config = copy.deepcopy(one_of(draw, BASES))
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(config))
        path = one_of(draw, known)
        parent, key = at(config, path[:-1]), path[-1]
        how = draw(st.sampled_from(["set", "set", "drop", "rename", "copy", "nest", "repeat", "number", "text"]))
        if how == "set":
            parent[key] = copy.deepcopy(one_of(draw, ODD))
        elif how == "drop":
            del parent[key]
        elif how == "rename" and isinstance(parent, dict):
            parent[one_of(draw, [f"{key}s", "", 1, None, True, (1, 2), "..", "a\nb"])] = parent.pop(key)
        elif how == "copy":
            parent[key] = copy.deepcopy(at(config, one_of(draw, known)))
        elif how == "nest":
            parent[key] = one_of(draw, [[parent[key]], {"a": parent[key]}, [parent[key]] * 2, str(parent[key])])
        elif how == "repeat" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif how == "number":
            parent[key] = draw(st.one_of(st.integers(-2, 1100), st.integers(), st.floats()))
        elif how == "text":
            parent[key] = draw(st.text(st.characters(), max_size=8))
    return config


def answer(config):
    """None where ``config`` is planned whole, and else the sentences that refuse it."""
    try:
        chain = planned(config)
    except UserError as refused:
        return str(refused)
    for cell in chain.plan.cells:
        parts = f"results/{chain.study.name}/cells/{cell.path}".split("/")
        assert len(parts) == 9 and not {"", ".", ".."} & set(parts)
        assert all(len(os.fsencode(part)) < 256 and part.isprintable() for part in parts)
    return None


@examples(50)
@given(mutated())
def test_a_config_is_planned_whole_or_refused(config):
    said = answer(config)
    assert said is None or all(line.startswith("config: ") for line in said.splitlines()), said


# ---------------------------------------------------------------- YAML

ROW = "[" + ", ".join(["*{}"] * 10) + "]"
BOMB = "a: &a [x]\n" + "".join(
    f"{b}: &{b} {ROW.replace('{}', a)}\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
# What stands in a file (as text or bytes), and what is said of it.
FILES = {
    "date": ("study: 2024-01-01", "config: study is read as date"),
    "no date": ("study: 2024-13-45", "month must be in"),
    "tabs": ("study:\ta\n\tb: 1\n", "YAML"),
    "twice": ("seed: 1\ndpi: 100\nseed: 2\n", "the key 'seed' is there twice"),
    "twice below": ("data: {shard: 1, shard: 2}", "the key 'shard' is there twice"),
    "object": ("study: !!python/object/apply:os.mkdir [planted]", "YAML"),
    "bomb": (BOMB, "config: the top level has more than 100,000 values"),
    "circle": ("gallery: &a [*a]", "nested more than 50 levels deep"),
    "deep": ("gallery: " + "[" * 600 + "]" * 600, "recursion"),
    "list": ("- 1\n", "keys at"),
    "nothing": ("", "keys at"),
    "binary": (bytes(range(128, 256)), "utf-8"),
    "text for a number": ("seed: 1e999", "seed is '1e999', but must be of type integer"),
    "many digits": ("seed: " + "1" * 5000, "digits"),
    "a set": ("study: !!set {a}", "study is read as set"),
    "bytes": ("study: !!binary aGVsbG8=", "study is read as bytes"),
    "keys": ("1: 2\nnull: 3", "the key None at the top level is no text"),
    "a pair of keys": ("? [a, b]\n: 1", ""),
    "an escape": ('study: "\\e[31mred"', "\\x1b[31mred"),
    "half a pair": ('gallery: ["\\ud800"]', "gallery[0] holds half of a surrogate pair"),
    "two documents": ("seed: 1\n---\nseed: 2", "YAML"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("yaml")
    (folder / "config.yaml").write_text((REPO / "config.yaml").read_text())
    (folder / "schemas").symlink_to(SCHEMA.parent)
    for name, (text, _) in FILES.items():
        (folder / f"{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.mark.parametrize("name", FILES)
def test_yaml_of_any_content_is_refused(files, name, monkeypatch):
    monkeypatch.chdir(files)
    with pytest.raises(UserError) as refused:
        read_study([f"{name}.yaml"])
    said = str(refused.value)
    assert FILES[name][1] in said and len(said) < 1000 and said.replace("\n", "").isprintable(), said
    assert not (files / "planted").exists()


RUN = """
import sys
from snakemake.cli import main
for name in sys.argv[2:]:
    print(f"<{name}>", flush=True)
    try:
        main(["-n", "-q", "--cores", "1", "--snakefile", sys.argv[1], "--configfile", f"{name}.yaml"])
    except SystemExit as end:
        print("status", end.code, flush=True)
"""


def test_the_workflow_refuses_them_too(files):
    """Of those that Snakemake itself can read: of the others it says what is wrong after a traceback of its own."""
    names = ["object", "twice", "bomb", "keys", "an escape"]
    done = subprocess.run([sys.executable, "-c", RUN, REPO / "Snakefile", *names], cwd=files, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    parts = re.split(r"^<(.*)>$", done.stdout, flags=re.M)[1:]
    assert parts[::2] == names, done.stdout
    for name, said in zip(names, parts[1::2], strict=True):
        assert "status 1" in said and "Traceback" not in said and FILES[name][1] in said, said
    assert not (files / "planted").exists()
