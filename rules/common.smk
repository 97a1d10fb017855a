"""What the rules share: how params reach the jobs, and how a stale result is made impossible.

Every rule gets as `params` the part of the config it depends on together with the digests of the stages it reads
(ldmscale.cells.chain), which follow from the config before anything runs. So a change anywhere upstream changes the
params of every rule downstream, and a figure can never pass for current because a job in between has failed.
"""

import os


def external(*paths):
    """Files from outside that a rule reads, as inputs where they exist; a script says what is missing otherwise."""
    return [path for path in paths if path and os.path.exists(path)]


rule config:
    """The whole merged config, beside the results that it made."""
    output:
        f"{results}/config.yaml",
    log:
        f"{results}/logs/config.log",
    params:
        config=config,
    localrule: True
    script:
        "../workflow_scripts/config.py"
