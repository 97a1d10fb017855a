"""The page a newcomer reads first: what was run, what was measured, and which findings of the paper it bears out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from ldmscale.analysis.findings import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, Finding
from ldmscale.analysis.study import SAMPLER_NAMES, StudyInfo, model_label, models_of

PAPER = "[Bigger is not Always Better: Scaling Properties of Latent Diffusion Models](https://arxiv.org/abs/2404.01367)"
LIMITS = """## What this run cannot show

Each model was trained once, from one seed. The intervals say how much the numbers would move with other prompts and \
other starting noises; they do not say how much they would move if the models were trained again. Where two models \
differ by little, another seed could reverse them, even if the interval here is clear of zero. Findings about step \
counts and guidance, which compare settings of the same trained model, suffer less from this than findings that \
compare models. Several comparisons are made at once, so an interval that only just clears zero is weak evidence."""
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def markdown_text(text: object) -> str:
    """``text`` as literal Markdown: one line, every mark-up character escaped."""
    return _MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def summary_markdown(findings: Sequence[Finding], study: StudyInfo, scores: pd.DataFrame) -> str:
    """The text of ``summary.md``."""
    parts = [_head(study, scores), _verdicts(findings), _each(findings), _how(study), LIMITS]
    return "\n\n".join(parts) + "\n"


def _head(study: StudyInfo, scores: pd.DataFrame) -> str:
    models = models_of(scores)
    cells, checkpoints = scores["cell"].nunique(), scores.groupby("model")["train_step"].nunique().max()
    sizes = "; ".join(markdown_text(model_label(m)) for m in models)
    samplers = ", ".join(SAMPLER_NAMES[s] for s in sorted(scores["sampler"].unique()))
    steps, cfgs = sorted(scores["steps"].unique()), sorted(scores["cfg"].unique())
    return f"""# Summary of the study "{markdown_text(study.name)}"

This run asks the question of {PAPER}: at a given sampling budget, which size of text-to-image diffusion model, with \
how many sampling steps and how much guidance, makes the best images?

| | |
|---|---|
| Data | {markdown_text(study.data)}, {study.image_size} x {study.image_size} pixels |
| Models (U-Net parameters) | {sizes} |
| Checkpoints a model | up to {checkpoints} |
| Samplers | {samplers} |
| Sampling steps | {", ".join(map(str, steps))} |
| Guidance weights (CFG) | {", ".join(f"{c:g}" for c in cfgs)} |
| Measured settings | {cells} |
| Prompts, one image each | {study.n_heldout} held out for reporting, {study.n_tuning} for choosing guidance |
| FID features | {markdown_text(study.fid_features)} |
| CLIP score | {markdown_text(study.clip_features)} |"""


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


def _how(study: StudyInfo) -> str:
    return f"""## How to read the numbers

- **FID** (lower is better) is the distance between the features of generated and of real images. Its size depends on \
the features and on the number of images, so these FIDs, from {markdown_text(study.fid_features)} and \
{study.n_heldout} images, compare with each other and not with FIDs published elsewhere.
- **CLIP score** (higher is better) is the mean cosine similarity between an image and its prompt.
- **CFG**, the guidance weight, says how strongly the prompt pulls on the image; 1 is no pull beyond the model's own.
- **Cost** is the paper's: U-Net cost relative to the reference model, times the number of steps. It leaves out the \
second evaluation that guidance needs, the text encoder and the decoder; *whole cost* counts them all.
- Guidance weights, and in budget comparisons steps and models too, are chosen on the {study.n_tuning} tuning prompts; \
every number is reported on the {study.n_heldout} held-out prompts.
- **Intervals** are 95% intervals from bootstrap resampling of the prompts, the same resample for every setting, so \
that differences are paired. *Supported* means that the deciding interval (the first that is given; for training \
compute, every model's) lies wholly on the paper's side of zero, *not supported* that it lies on the other side (for \
model size, also that some step up in size makes FID worse beyond its interval; for training compute, that any model \
gets worse). *Cannot tell* is everything else."""
