"""For the tests of this folder: how many examples they try, and all that is planned of a config."""

import os

from helpers import SCHEMA
from hypothesis import HealthCheck, Phase, settings

from ldmscale.cells.chain import Chain
from ldmscale.cells.lineage import MANIFESTS, Lineage
from ldmscale.cells.plan import Plan
from ldmscale.config.check import check
from ldmscale.config.study import Study

# Stages of some studies alone, with the section of the config that they are of.
OPTIONAL = {"pairs": "superres", "baselines": "superres", "subjects": "dreambooth", "text_encoder": "text_encoder"}


def examples(count: int) -> settings:
    """The same ``count`` in every run, or FUZZ_EXAMPLES others. A failure is told as it was found: to look for a
    smaller one can take hours where a few examples take seconds."""
    asked = os.environ.get("FUZZ_EXAMPLES")
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=int(asked or count), derandomize=not asked, database=None, phases=[Phase.generate],
                    suppress_health_check=slow)  # fmt: skip


def planned(config: dict) -> Chain:
    """Check ``config`` and plan all of its study, as the Snakefile and its rules do. Raises UserError."""
    check(config, SCHEMA)
    plan = Plan(Study(config))
    chain, study = Chain(plan), plan.study
    lineage = Lineage(chain)
    for stage, file in MANIFESTS.items():
        if stage not in OPTIONAL or study.config[OPTIONAL[stage]]:
            assert all(len(link.digest) == 16 for link in lineage.of(file).walk())
    for task, model in {(cell.task, cell.model) for cell in plan.cells}:
        assert chain.model(task, model)["digest"] and study.devices(model)
    made = [chain.generate(job) for job in plan.generation_jobs()] + [chain.score(job) for job in plan.scoring_jobs()]
    figures = [chain.figure(name) for name, settings in study.config["figures"].items() if settings is not None]
    for params in (*made, *figures, chain.scores(), chain.claims(), chain.summary(), chain.explorer()):
        assert params
    return chain
