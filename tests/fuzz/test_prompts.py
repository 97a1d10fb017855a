"""Prompts, captions, names and titles of any kind: shown as they are; never markup, a path, a pattern, an escape."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import subprocess
import sys
import unicodedata
import warnings
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import chromium
import numpy as np
import pytest
import yaml
from helpers import REPO, merged
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from synthetic_dreambooth import with_dreambooth
from synthetic_study import settings as with_settings
from synthetic_study import small_study, with_interpolation

from ldmscale.analysis.summary import markdown_text
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.cli import sample, watch
from ldmscale.config.check import check
from ldmscale.config.study import Study
from ldmscale.data import dreambooth
from ldmscale.data.records import read_split, write_split
from ldmscale.data.source import Example, tidy
from ldmscale.data.tokenizer import ALPHABET, END, START, load_tokenizer, train_tokenizer
from ldmscale.errors import UserError
from ldmscale.explorer import explorer_page
from ldmscale.figures import FIGURES, style
from ldmscale.figures.load import study_info
from ldmscale.figures.table import tex_text
from ldmscale.jobs import job
from ldmscale.text import inert_scripts, json_for_html, one_line, visible

docutils = pytest.importorskip("docutils.core")  # Snakemake's, for its report, as is
jinja2 = pytest.importorskip("jinja2")

HTML = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> ]]> --> <!--<script>"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m red \x9b5m\r over"
HOSTILE = [
    HTML,
    ESCAPES,
    r"$\frac{a}{b}$ \input{/etc/passwd} $$ _x^2 %#& ~ \\",
    "{0} {wildcards.figure} {config[study]} %s %(x)d {{ x }} {% raw %} <name>",
    "$(touch run); `touch run` && touch run | ../../run /etc/passwd ~root",
    "- a: [b, {c: &d *d\n'\"#! !!python/object:os.system\n...\n---\n\t| x | ``` [l](javascript:x) **b** ==",
    "half \ud83d a pair, NUL \x00, \ufeff \ufffe, next \x85 line \u2028 paragraph \u2029",
    "\u202e rtl \u2066 \u05e9\u05dc\u05d5\u05dd e\u0301\u0301\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u6f22",
    "=cmd()|'/c calc'!A0 @SUM(A1) +1 -1",
    "x" * 100_000,
    "e" + "\u0301" * 20_000,
    "a b " * 25_000,
    "",
]
WRITABLE = [*HOSTILE[:6], *HOSTILE[7:]]  # what a config may hold: no NUL, no half of a pair
# As much markup as chance alone would not make.
MARKS = st.sampled_from(list("<>&$\\_^{}[]()|`*~#%\"'!:/.-+=@\n\t\x1b\x00\x85\u2028\ud83d\u202e\u200d\u0301 aZ"))
TEXT = st.one_of(st.text(st.characters(), max_size=40), st.text(MARKS, max_size=40), st.sampled_from(HOSTILE[:-4]))
few = settings(max_examples=60, derandomize=True)


# ---------------------------------------------------------------- as a line, in a terminal, in a page


ACCENTS = "[\u0300-\u036f]+"


def bare(text):
    """``text`` without its accents."""
    return "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Me"))


@few
@given(TEXT)
def test_a_line_is_one_line_of_what_can_be_seen(text):
    line = one_line(text)
    assert all(c.isprintable() for c in line) and line == " ".join(line.split())
    dense, there = re.sub(" ", "", line), "".join(c for c in text if c.isprintable() and c != " ")
    assert bare(dense) == bare(there) and max(map(len, re.findall(ACCENTS, dense)), default=0) <= 4
    said = visible(text)
    assert not any(unicodedata.category(c)[0] == "C" for c in said if c not in "\n\t")
    assert isinstance(said.encode(), bytes) and visible(said) == said


@few
@given(TEXT)
def test_a_refusal_moves_no_cursor(text):
    assert str(UserError(f"the file {text} is missing")) == f"the file {visible(text)} is missing"


@few
@given(TEXT)
def test_markdown_and_html_show_the_text_itself(text):
    shown = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(f"| a | b |\n|---|---|\n| x{markdown_text(text)} | y |")
    )
    cells = re.findall("<td>(.*?)</td>", shown, re.DOTALL)
    assert len(cells) == 2 and "<" not in cells[0] and unescape(cells[0]) == f"x{one_line(text)}".rstrip()


TEX = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
       r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotedbl{}": '"',
       **{f"\\{c}": c for c in "{}$&#%_"}}  # fmt: skip


@few
@given(TEXT)
def test_latex_shows_the_text_itself(text):
    parts = re.split("(" + "|".join(map(re.escape, TEX)) + ")", tex_text(text))
    assert not set("\\{}$&#%_~^\n") & set("".join(parts[::2]))
    assert "".join(TEX.get(part, part) for part in parts) == one_line(text)


@few
@given(st.dictionaries(TEXT, st.lists(TEXT)), st.lists(TEXT, max_size=3))
def test_scripts_of_a_page_hold_data_alone(value, more):
    plain, listed = json.dumps(value, ensure_ascii=False), json.dumps(more)
    assert json.loads(json_for_html(plain)) == value and "<" not in json_for_html(plain)
    page = f'<p>"<b>"</p><script id="a">\n    var a = {plain};\n</script><script>run("<b>")</script>\n'
    page += f'<script type="application/json">{listed}</script>'
    made = inert_scripts(page)
    assert made.count("<script") == made.count("</script>") == 3 and "<!--" not in made
    first, last = re.search(r"var a = (.*);\n</script>", made)[1], re.search(r'json">(.*)</script>$', made)[1]
    assert (json.loads(first), json.loads(last)) == (value, more) and 'run("<b>")' in made


def test_a_page_that_is_cut_short_is_refused():
    with pytest.raises(ValueError, match="Unterminated"):
        inert_scripts('<script>var a = {"a": "</script>')


@pytest.mark.parametrize(
    "path", [*HOSTILE[:9], "x``\n\n.. raw:: html\n\n   <script>1</script>\n\n.. include:: /etc/passwd"]
)
def test_the_reports_words_are_text(path):
    """Snakemake fills in captions with jinja2 and draws them with docutils, whose directives read files."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    for source in ({"source": "coco", "annotations": path, "images": "i"}, {"source": "folder", "images": path}):
        config = merged({"data": {"train": source}})
        config["data"]["train"] = source
        text = environment.from_string((REPO / "report" / "study.rst").read_text())
        html = docutils.publish_parts(text.render(snakemake=SimpleNamespace(config=config)), writer="html")["html_body"]
        assert "<script" not in html and "root:" not in html and "system-message" not in html
        said, shown = (re.sub(r"[^!-~]+|\\", "", part) for part in (path, unescape(re.sub("<[^>]*>", "", html))))
        assert said.replace("`", "'") in shown


@pytest.mark.parametrize("figure", ["fig01", "fits"])
def test_the_figures_captions_are_sound(figure, capfd):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string((REPO / "report" / "figure.rst").read_text())
    about = SimpleNamespace(wildcards=SimpleNamespace(figure=figure), output=SimpleNamespace(pdf="a.pdf"))
    html = docutils.publish_parts(text.render(snakemake=about), writer="html")["body"]
    assert "system-message" not in html and "<strong>" in html and not capfd.readouterr().err


# ---------------------------------------------------------------- figures and the explorer


@pytest.fixture(scope="module")
def study():
    data = small_study(gallery=tuple(HOSTILE))
    sources = [{"source": "folder", "images": f"{HTML}{ESCAPES}"}, None]
    info = {"study": "x", "image_size": 32, "fid_dimensions": 64, "sources": sources}
    named = study_info(info, data.scores.assign(trainings=1))
    assert all(c.isprintable() for c in named.data)
    return dataclasses.replace(data, study=dataclasses.replace(data.study, data=named.data))


def saved(figure):
    """The figure's texts, after it was written as PDF and PNG; glyphs that the font lacks are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        style.save_figure(figure, Path("a.pdf"), Path("a.png"), 40)
    Image.open("a.png").load()
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_pictures_stand_over_their_prompts(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = with_settings(study, experiment="headline", prompts=list(range(len(HOSTILE))), models=["f8"])
    figure = FIGURES["fig01"](data)
    texts = saved(figure)
    for prompt in HOSTILE:
        start = style.wrap(f"“{one_line(prompt)}”", 500, 7.2, 1)[:20].strip("…")
        found = [text for text in texts if "".join(text.split()).startswith("".join(start.split()))]
        assert found and all(text.count("\n") < 3 for text in found), prompt[:50]
        if not 60 < (length := len(one_line(prompt))) < 400:
            assert all(text.endswith("…") == (length > 400) for text in found), prompt[:50]
    assert not any(text.get_parse_math() for ax in figure.axes for text in ax.texts)
    assert figure.get_figheight() < 3 * len(HOSTILE)


def test_ways_between_prompts_and_subjects(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [(HOSTILE[0], "x" * 100_000)]
    ways = with_interpolation(with_settings(study, experiment="interpolation", pair=0), pairs)
    assert any(text.endswith("…") and text.startswith("A: “</script>") for text in saved(FIGURES["fig24"](ways)))
    subject = with_dreambooth(with_settings(study, experiment="dreambooth", subjects=["dog_2-b"], prompt=1))
    subject.subjects["dog_2-b"].update(class_name="$x_1$ \x1b[2J <b>", prompts=HOSTILE[:5])
    texts = saved(FIGURES["fig06"](subject))
    assert any("the $x_1$ [2J <b> being the subject dog_2-b" in text.replace("\n", " ") for text in texts)


@settings(max_examples=40, derandomize=True)
@given(TEXT, st.floats(30, 500), st.integers(1, 3))
def test_wrapped_text_fits(text, width, lines):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, cut = style.wrap(text, width, 7.0).split("\n"), style.wrap(text, width, 7.0, lines).split("\n")
        assert all(len(line) < 2 or style.text_width(line, 7.0) <= width for line in (*whole, *cut))
    assert "".join(whole).replace(" ", "") == one_line(text).replace(" ", "")
    assert len(cut) <= lines and (cut == whole if len(whole) <= lines else cut[-1].endswith("…"))


def test_the_work_of_wrapping_does_not_grow_with_what_is_cut(monkeypatch):
    measured = []
    width = style.text_width
    monkeypatch.setattr(
        style, "text_width", lambda text, *rest, **font: measured.append(len(text)) or width(text, *rest, **font)
    )
    for unit in ("x", "e\u0301", "ab ", "\u0301"):
        style.wrap(unit * 50_000, 500, 7.0, 3)
    assert max(measured) <= style.LONGEST_LINE and sum(measured) < 100_000


@pytest.mark.skipif(not chromium.find(), reason="no Chromium on this machine")
def test_the_explorer_runs_nothing_and_keeps_its_layout(study, tmp_path):
    data = dataclasses.replace(study, study=dataclasses.replace(study.study, name=HTML))
    rows = data.scores.assign(fid_features=HTML, trainings=1)
    text = explorer_page(rows, data.study, data.models, data.gallery, data.previews)
    (tmp_path / "explorer.html").write_text(text, encoding="utf-8")
    with chromium.Chromium() as page:
        page.size(1200, 900)
        page.open(tmp_path / "explorer.html")
        assert page.run("document.title").startswith("</script>") and page.run("document.scripts.length") == 3
        captions = "[...document.querySelectorAll('#best figcaption')]"
        assert page.run(f"{captions}.map((c) => c.title)") == HOSTILE
        assert page.run(f"Math.max(...{captions}.map((c) => c.getBoundingClientRect().height))") < 120
        assert page.run("document.documentElement.scrollWidth") <= 1200 and page.run("document.images.length") == 0
        assert not page.problems


# ---------------------------------------------------------------- tokenizers, records, pictures


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """The trained one, the published one, and transformers' own of the published one's files."""
    folder = tmp_path_factory.mktemp("tokenizers")
    trained = train_tokenizer([text[:2000] for text in HOSTILE], 400, folder / "bpe.json")
    names = [*ALPHABET, *(symbol + "</w>" for symbol in ALPHABET), "at</w>", "cat</w>", "ca", START, END]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc at</w>\na t</w>\nc a\n")
    (folder / "published").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).rename(folder / "published" / name)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(folder / "published")
    return trained, load_tokenizer(folder / "published"), theirs


@few
@given(TEXT)
def test_tokens_of_any_text(tokenizers, text):
    trained, published, theirs = tokenizers
    for ours in (trained, published):
        row = ours.encode([text], 77)[0]
        end = int(np.argmax(row == ours.end_id))
        assert row[0] == ours.start_id and row[end] == ours.end_id and (row[end + 1 :] == ours.pad_id).all()
        assert row.min() >= 0 and row.max() == ours.end_id
    assert set(trained.encode([text], 77)[0, 1:]).isdisjoint({trained.start_id})
    sound = text.encode("utf-8", "replace").decode()
    batch = theirs([sound], padding="max_length", max_length=77, truncation=True, return_tensors="np")
    assert published.encode([text], 77).tolist() == batch.input_ids.tolist()


def test_long_prompts_are_cut_as_transformers_cuts_them(tokenizers):
    _, published, theirs = tokenizers
    texts = [text.encode("utf-8", "replace").decode() for text in HOSTILE]
    batch = theirs(texts, padding="max_length", max_length=77, truncation=True, return_tensors="np")
    np.testing.assert_array_equal(published.encode(HOSTILE, 77), batch.input_ids)


def test_captions_come_back_from_the_records(tmp_path):
    captions = [tidy(text) for text in HOSTILE]
    source = SimpleNamespace(
        image_size=8, size=lambda split: len(captions),
        example=lambda split, i: Example(np.zeros((8, 8, 3), np.uint8), (captions[i],), f"{i}{captions[i][:30]}"),
    )  # fmt: skip
    write_split(tmp_path, source, "train", len(captions), 4, "0" * 16, 1)
    assert read_split(tmp_path, "train").captions == [(text,) for text in captions]


@few
@given(TEXT, TEXT)
def test_a_subjects_words_are_no_templates(kind, token):
    subject = dreambooth.Subject("dog", kind, True, np.zeros((2, 8, 8, 3), np.uint8), ("a {0} {1} by {x} %s",))
    if token.strip():
        assert dreambooth.prompts(subject, token) == [" ".join(f"a {token} {kind} by {{x}} %s".split())]


@few
@given(TEXT)
def test_a_picture_carries_its_prompt(tmp_path_factory, text):
    prompt, path = sample._sound(text), tmp_path_factory.getbasetemp() / "prompt.png"
    sample._save(path, np.zeros((4, 4, 3), np.uint8), {"prompt": prompt, "seed": 1})
    with Image.open(path) as image:
        assert image.info["prompt"] == prompt


# ---------------------------------------------------------------- jobs and the workflow


def handed_to(rule, log):
    """What Snakemake hands to a script, as far as a job reads it."""
    return SimpleNamespace(log=[str(log)], threads=1, rule=rule, resources=SimpleNamespace(get=lambda *_: None))


def test_a_log_cannot_be_forged(tmp_path):
    log = tmp_path / "logs" / "data.log"
    with pytest.raises(SystemExit) as ended, job(handed_to("data", log)) as say:
        say(f"left out: {ESCAPES}\n[    9.9 s] done")
        said = watch.text(tmp_path, watch.read_jobs(tmp_path))
        raise UserError(f"{HOSTILE[6]}{ESCAPES} is missing")
    for text in (said, log.read_text(), str(ended.value)):
        assert "\x1b" not in text and "\x9b" not in text and "\\x1b[2J" in text
    assert "1 running" in said
    log.write_text(log.read_text() + "Warning: \x1b[2J\n")
    assert "\\x1b[2J" in watch.text(tmp_path, watch.read_jobs(tmp_path))


def test_a_study_of_such_prompts_is_planned(tmp_path):
    """Its digests follow, and the config beside its results is the one that made them."""
    config = merged("smoke.yaml", {"gallery": WRITABLE})
    config["interpolation"]["pairs"] = [HOSTILE[:2], HOSTILE[4:6]]
    check(config, REPO / "schemas" / "config.schema.json")
    assert Chain(Plan(Study(config))).explorer()["gallery"] == WRITABLE
    handed = SimpleNamespace(
        **vars(handed_to("config", tmp_path / "log")),
        output=[str(tmp_path / "c.yaml")],
        params=SimpleNamespace(config=config),
    )
    runpy.run_path(str(REPO / "workflow_scripts" / "config.py"), {"snakemake": handed})
    assert yaml.safe_load((tmp_path / "c.yaml").read_text()) == config


def test_no_name_is_a_pattern(tmp_path):
    """Snakemake reads {a} in a file's name as a wildcard and <a> as a variable; prompts it passes on as they are."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("plain", "{draft}", "{", "<b>", "<!--<script>", "a b", "%s", "$(touch run)", "\x1b[2J"):
        Image.new("RGB", (8, 8)).save(photos / f"{name}.png")
    (tmp_path / "config.yaml").write_bytes((REPO / "config.yaml").read_bytes())
    overlay = {"gallery": WRITABLE, "autoencoder": {"photos": "photos"}}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "1", "--snakefile", str(REPO / "Snakefile")]
    command += [f"results/smoke/{file}.json" for file in ("encoders/autoencoder", "prompts/prompts")]
    command += ["--configfile", str(REPO / "configs" / "smoke.yaml"), "overlay.yaml"]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout[-3000:]
    assert not (tmp_path / "run").exists()
