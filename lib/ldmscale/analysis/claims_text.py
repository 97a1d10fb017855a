"""The claims in words: claims.md, and what the summary says of metrics that disagree and of choosing guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ldmscale.analysis.claims import Claim, Judged
from ldmscale.analysis.findings import CANNOT_TELL, NAMES, NOT_SUPPORTED, SUPPORTED, Finding, Number
from ldmscale.analysis.study import StudyInfo
from ldmscale.analysis.summary import limits, markdown_text

# What one training seed leaves open.
SEEDS = {
    "models": "Compares models that were trained apart, once each: training them again could change the answer, even "
    "where the interval is clear of zero.",
    "training": "Compares stages of each model's one training: it could go otherwise from another seed.",
    "settings": "Compares settings of the same trained models, so that training's luck is common to both sides.",
}


def claims_markdown(judged: Sequence[Judged], biases: Mapping[str, Sequence[Number]], study: StudyInfo) -> str:
    """The text of ``claims.md``: each claim with its test, what would refute it, its verdicts and their numbers."""
    parts = [
        f'# The paper\'s claims in the study "{markdown_text(study.name)}"',
        "Each statement of the paper is evaluated by one test that was fixed before the run: a contrast with its 95% "
        "interval from paired bootstrap over prompts and starting noises. *Supported*: the interval lies wholly on the "
        "paper's side; *not supported*: wholly on the other; *cannot tell*: anything else, also what the run did not "
        "measure.",
        _table(judged),
        *(_claim(i, each, study) for i, each in enumerate(judged, 1)),
        disagreements(judged),
        choice_section(biases, study),
        limits(study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(judged: Sequence[Judged]) -> str:
    rows = [
        f"| {i} | {each.claim.section} | {markdown_text(each.claim.statement)} | **{each.finding.verdict}** |"
        for i, each in enumerate(judged, 1)
    ]
    return "\n".join(["| | In the paper | Claim | This run |", "|---|---|---|---|", *rows])


def _claim(i: int, judged: Judged, study: StudyInfo) -> str:
    claim = judged.claim
    parts = [
        f"## {i}. {markdown_text(claim.statement.rstrip('.'))}",
        f"{claim.section}; `{claim.id}`, tested by {_test(claim)}. Refuted if: {markdown_text(claim.refuted_by)}",
        f"**{judged.finding.verdict.capitalize()}.** {markdown_text(judged.finding.note)}",
        _numbers(judged.finding),
    ]
    for metric, finding in judged.under.items():
        name = markdown_text(NAMES[metric])
        parts.append(f"*By {name}*: **{finding.verdict}.** {markdown_text(finding.note)}")
        parts.append(_numbers(finding))
    once = study.trainings == 1 and judged.finding.numbers
    return "\n\n".join(part for part in [*parts, SEEDS[claim.compares] if once else ""] if part)


def _test(claim: Claim) -> str:
    values = ", ".join(f"{key}={value}" for key, value in claim.parameters.items())
    return f"`{claim.test}({values})`"


def _numbers(finding: Finding) -> str:
    others = [str(number) for number in finding.numbers if str(number) not in finding.note]
    return "\n".join(f"- {markdown_text(other)}" for other in others)


def disagreements(judged: Sequence[Judged]) -> str:
    """Where other metrics give another verdict than FID, as a section; empty where no claim has any other."""
    judged = [each for each in judged if each.claim.metrics[0] == "fid" and each.under]
    if not judged:
        return ""
    metrics = list(dict.fromkeys(metric for each in judged for metric in each.under))
    lines = ["## Do other metrics agree with FID?", ""]
    for metric in metrics:
        pairs = [(each.finding.verdict, each.under[metric].verdict) for each in judged if metric in each.under]
        same = sum(a == b for a, b in pairs)
        opposite = sum({a, b} == {SUPPORTED, NOT_SUPPORTED} for a, b in pairs)
        alone = {"FID": sum(a != b == CANNOT_TELL for a, b in pairs), "": sum(b != a == CANNOT_TELL for a, b in pairs)}
        name = markdown_text(NAMES[metric])
        lines.append(
            f"- **{name}**: of {len(pairs)} claims that rest on FID, it gives {same} the same verdict and {opposite} "
            f"the opposite one; on {alone['FID']} FID alone can tell, on {alone['']} {name} alone."
        )
    unlike = [each for each in judged if any(f.verdict != each.finding.verdict for f in each.under.values())]
    if unlike:
        lines += ["", f"| Claim | FID | {' | '.join(markdown_text(NAMES[metric]) for metric in metrics)} |"]
        lines.append("|---" * (2 + len(metrics)) + "|")
        for each in unlike:
            found = [each.finding, *(each.under.get(metric) for metric in metrics)]
            cells = [_cell(finding, each.finding) for finding in found]
            lines.append(f"| {markdown_text(each.claim.statement)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(finding: Finding | None, fid: Finding) -> str:
    """A verdict with its first number; in bold where it is not FID's."""
    if finding is None:
        return "not measured"
    verdict = finding.verdict if finding.verdict == fid.verdict else f"**{finding.verdict}**"
    if not finding.numbers:
        return verdict
    first = finding.numbers[0]
    return f"{verdict}: {first.value:.3g} " + markdown_text(f"[{first.low:.3g}, {first.high:.3g}]")


def choice_section(biases: Mapping[str, Sequence[Number]], study: StudyInfo) -> str:
    """What choosing guidance on the reported prompts would flatter, as a section; empty where it was not measured."""
    if not biases:
        return ""
    lines = [
        "## What choosing guidance on the reported prompts would flatter",
        "",
        "The best of several noisy scores looks better than it is. Were each model's guidance weight chosen on the "
        "prompts that it is reported on, its score would be off by the first of these numbers; the run does not do so. "
        f"Every comparison stays within one split ({study.n_heldout} held-out or {study.n_tuning} tuning prompts), "
        "because FID depends on the number of images: the score at the weight that is best on the split itself, minus "
        "the score at the weight that is best on the other. Within the held-out split this also holds what the poorer "
        "choice on other prompts costs, within the tuning split it lacks as much; the mean of the two is free of it.",
        "",
    ]
    numbers = [number for metric in sorted(biases, key=list(NAMES).index) for number in biases[metric]]
    return "\n".join([*lines, *(f"- {markdown_text(number)}" for number in numbers)])
