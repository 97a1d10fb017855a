"""The page a newcomer reads first: what was run, what was measured, and which findings of the paper it bears out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ldmscale.analysis.distilled import ALIKE, CODI, GUIDED
from ldmscale.analysis.downstream import SUPERRES, Check, checks
from ldmscale.analysis.dreambooth import DREAMBOOTH
from ldmscale.analysis.families import NAMES
from ldmscale.analysis.findings import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, Finding
from ldmscale.analysis.study import SAMPLER_NAMES, StudyInfo, model_label, models_of
from ldmscale.text import one_line

PAPER = "[Bigger is not Always Better: Scaling Properties of Latent Diffusion Models](https://arxiv.org/abs/2404.01367)"
ONE_TRAINING = """\
Each model was trained once, from one seed. The intervals say how much the numbers would move with other prompts and \
other starting noises; they do not say how much they would move if the models were trained again. Where two models \
differ by little, another seed could reverse them, even if the interval here is clear of zero. Findings about step \
counts and guidance, which compare settings of the same trained model, suffer less from this than findings that \
compare models. """
TRAININGS = """\
Each model was trained {count} times, from as many seeds; numbers are means over them, and intervals (DreamBooth's \
apart, which resample prompts alone) cover training again. {count} is few: such intervals are rough themselves. """
MANY = "Several comparisons are made at once, so an interval that only just clears zero is weak evidence."


def limits(study: StudyInfo) -> str:
    """What the run cannot show: how many trainings its intervals cover."""
    trainings = TRAININGS.format(count=study.trainings) if study.trainings > 1 else ONE_TRAINING
    return f"## What this run cannot show\n\n{trainings}{MANY}"


_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def markdown_text(text: object) -> str:
    """``text`` as literal Markdown: one line, every mark-up character escaped."""
    return _MARKUP.sub(r"\\\1", one_line(text))


def summary_markdown(
    findings: Sequence[Finding],
    study: StudyInfo,
    scores: pd.DataFrame,
    baselines: Sequence[Mapping[str, Any]] = (),
    more: Sequence[str] = (),
) -> str:
    """The text of ``summary.md``.

    ``baselines`` are super-resolution's score rows without a model, where there are; ``more`` are further sections,
    which stand behind the findings.
    """
    tasks = {task: scores[scores["task"] == task] for task in ("t2i", SUPERRES, DREAMBOOTH, CODI, GUIDED)}
    parts = [_head(study, scores) + _downstream_head(tasks), _verdicts(findings)]
    parts += [
        _each(findings),
        *more,
        _checks(checks(scores, baselines)),
        _how(study) + _downstream_how(tasks),
        limits(study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(study: StudyInfo, scores: pd.DataFrame) -> str:
    models, whole = models_of(scores), scores
    scores = scores[scores["task"] == "t2i"]
    cells, checkpoints = scores["cell"].nunique(), scores.groupby("model")["train_step"].nunique().max()
    more = " of text-to-image, as the lines above" if len(scores) < len(whole) else ""
    families = {family: [m for m in models if m.family == family] for family in NAMES}
    sizes = "\n".join(
        f"| Models ({NAMES[family]} parameters) | {'; '.join(markdown_text(model_label(m)) for m in mine)} |"
        for family, mine in families.items()
        if mine
    )
    if all(families.values()):
        sizes += "\n| Findings and fits are of | the U-Nets alone, as the paper's are |"
    samplers = ", ".join(SAMPLER_NAMES[s] for s in sorted(scores["sampler"].unique()))
    steps, cfgs = sorted(scores["steps"].unique()), sorted(scores["cfg"].unique())
    return f"""# Summary of the study "{markdown_text(study.name)}"

This run asks the question of {PAPER}: at a given sampling budget, which size of text-to-image diffusion model, with \
how many sampling steps and how much guidance, makes the best images?

| | |
|---|---|
| Data | {markdown_text(study.data)}, {study.image_size} x {study.image_size} pixels |
{sizes}
| Checkpoints a model | up to {checkpoints} |
| Samplers | {samplers} |
| Sampling steps | {", ".join(f"{s:.0f}" for s in steps)} |
| Guidance weights (CFG) | {", ".join(f"{c:g}" for c in cfgs)} |
| Measured settings | {cells}{more} |
| Prompts, one image each | {study.n_heldout} held out for reporting, {study.n_tuning} for choosing guidance |
| FID features | {markdown_text(study.fid_features)} |
| CLIP score | {markdown_text(study.clip_features)} |"""


def _downstream_head(tasks: Mapping[str, pd.DataFrame]) -> str:
    """Lines of the head's table for the other tasks; the lines above are of text-to-image alone."""
    lines = []
    if len(rows := tasks[SUPERRES]):
        first = rows.iloc[0]
        lines.append(
            f"Super-resolution | {_finetuned(rows)}; sampled in {_span(rows['steps'])} steps without guidance; "
            f"{first['n']:.0f} patches; FID on {first['fid_features']}; perceptual distance: "
            f"{first['perceptual_features']}"
        )
    if len(rows := tasks[DREAMBOOTH]):
        first = rows.iloc[0]
        lines.append(
            f"DreamBooth | {_finetuned(rows)}; {rows['subject'].nunique()} subjects, "
            f"{_span(rows['dino'].map(np.size))} prompts each; sampled in {_span(rows['steps'])} steps; DINO by "
            f"{first['subject_features']}, CLIP-I and CLIP-T by {first['clip_features']}, diversity by "
            f"{first['diversity_features']}"
        )
    for task, name in ((CODI, "CoDi"), (GUIDED, "Guided distillation")):
        if len(rows := tasks[task]):
            made = f"{_finetuned(rows)} ({rows['model'].nunique()} models)"
            lines.append(f"{name} | {made}; sampled in {_span(rows['steps'])} steps")
    cells = [line.split(" | ", 1) for line in lines]
    return "".join(f"\n| {name} | {markdown_text(text)} |" for name, text in cells)


def _finetuned(rows: pd.DataFrame) -> str:
    after = rows[rows["train_step"] > 0]
    if after.empty:
        return f"{rows['cell'].nunique()} settings measured, none finetuned"
    return f"{rows['cell'].nunique()} settings measured, finetuned for {_span(after['train_step'])} steps"


def _span(values: pd.Series) -> str:
    return " to ".join(dict.fromkeys(f"{v:.0f}" for v in (values.min(), values.max())))


def _verdicts(findings: Sequence[Finding]) -> str:
    count = {v: sum(f.verdict == v for f in findings) for v in (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL)}
    rows = [
        f"| {i} | {f.section} | {markdown_text(f.statement)} | **{f.verdict}** |" for i, f in enumerate(findings, 1)
    ]
    return "\n".join(
        [
            "## What the paper says, and what this run says about it",
            "",
            f"Of {len(findings)} findings, this run supports {count[SUPPORTED]}, does not support "
            f"{count[NOT_SUPPORTED]}, and cannot tell about {count[CANNOT_TELL]}.",
            "",
            "| | In the paper | Finding | This run |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _each(findings: Sequence[Finding]) -> str:
    parts = ["## Finding by finding"]
    for i, finding in enumerate(findings, 1):
        parts.append(f"### {i}. {markdown_text(finding.statement.rstrip('.'))} ({finding.section})")
        parts.append(f"**{finding.verdict.capitalize()}.** {markdown_text(finding.note)}")
        others = [str(number) for number in finding.numbers if str(number) not in finding.note]
        if others:
            parts.append("\n".join(f"- {markdown_text(number)}" for number in others))
    return "\n\n".join(parts)


def _checks(found: Sequence[Check]) -> str:
    if not found:
        return ""
    lines = ["## Checks", "", "No findings of the paper: what must hold if finetuning and its metrics work.", ""]
    for check in found:
        holds, fails = check.counts
        each = "; ".join(f"{n.label} {n.value:+.3g} [{n.low:+.3g}, {n.high:+.3g}]" for n in check.numbers)
        against = f", the opposite in {fails}" if fails else ""
        beside = f" For comparison: {check.beside}." if check.beside else ""
        text = f"in {holds} of {len(check.numbers)} models beyond the interval{against}. Differences: {each}.{beside}"
        lines.append(f"- **{markdown_text(check.statement)}:** {markdown_text(text)}")
    return "\n".join(lines)


def _downstream_how(tasks: Mapping[str, pd.DataFrame]) -> str:
    text = ""
    if len(tasks[SUPERRES]):
        text += """
- **Super-resolution** has one set of patches and no guidance, so what is said above of tuning and held-out prompts \
does not hold for it; its FIDs are of patches and compare with no other. Where a best of several is taken, the note \
says that it was chosen on the patches that it is reported on. Its intervals resample patches. Its finding on model \
size is judged as text-to-image's; for that on small budgets *supported* means that some smaller model is better \
beyond an interval at a level shared between the smaller models, *not supported* that every one of them is worse \
beyond its own; for that on large budgets, that the largest is better than every one, and that some is better."""
    if len(tasks[DREAMBOOTH]):
        text += """
- **DreamBooth**: *DINO* and *CLIP-I* are the mean cosine similarity of a picture to the subject's real images, by \
the features named above; *CLIP-T* is that of a picture to its prompt; *PRES* is DINO's of pictures of the class \
alone (lower: the class is kept apart from the subject); *DIV* is the mean distance between the pictures of a prompt. \
All are means over the same subjects, and the intervals resample the prompts within them (of PRES the pictures), so \
they do not say how another choice of subjects would turn out."""
    if len(tasks[CODI]):
        text += f"""
- **CoDi**'s cost counts its adapter. Its *acceleration factor* is our definition, the paper gives none: the \
undistilled model's steps, each at its best guidance, that give the distilled FID of 4 steps, over 4; between the \
steps of the grid it is interpolated, beyond them it is only bounded. Two factors are *alike* within {ALIKE:g} times."""
    return text


def _few(study: StudyInfo) -> str:
    said = study.few(min(study.n_heldout, study.n_tuning))
    return f" {said}." if said else ""


def _how(study: StudyInfo) -> str:
    return f"""## How to read the numbers

- **FID** (lower is better) is the distance between the features of generated and of real images. Its size depends on \
the features and on the number of images, so these FIDs, from {markdown_text(study.fid_features)} and \
{study.n_heldout} images, compare with each other and not with FIDs published elsewhere.{_few(study)}
- **CLIP score** (higher is better) is the mean cosine similarity between an image and its prompt.
- **CFG**, the guidance weight, says how strongly the prompt pulls on the image; 1 is no pull beyond the model's own.
- **Cost** is the paper's: a network's cost relative to the reference model, times the number of steps. It leaves out \
the second evaluation that guidance needs, the text encoder and the decoder; *whole cost* counts them all.
- Guidance weights, and in budget comparisons steps and models too, are chosen on the {study.n_tuning} tuning prompts; \
every number is reported on the {study.n_heldout} held-out prompts.
- **Intervals** are 95% intervals from bootstrap resampling of the prompts, the same resample for every setting, so \
that differences are paired. *Supported* means that the deciding interval (the first that is given; for training \
compute, every model's) lies wholly on the paper's side of zero, *not supported* that it lies on the other side (for \
model size, also that some step up in size makes FID worse beyond an interval shared between the steps; for training \
compute, that any model gets worse beyond one shared between the models). *Cannot tell* is everything else, also what \
this run did not measure. `claims.md` has every claim with its test, what would refute it, and other metrics beside \
FID."""
