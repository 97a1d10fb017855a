"""The processes of one job, one a host: every host runs the same script, and host 0 alone leaves files.

A job is one process unless its environment says otherwise: by ``LDMSCALE_HOSTS`` (how many), ``LDMSCALE_HOST`` (which
this is) and ``LDMSCALE_COORDINATOR`` (host:port of number 0), or by ``LDMSCALE_LAUNCHED=1`` where JAX finds these by
itself: under Slurm's srun, on the hosts of a TPU slice. Where there is one process, nothing here imports JAX.
"""

from __future__ import annotations

import os
from typing import Any

from ldmscale.errors import UserError

HOSTS, HOST, COORDINATOR = "LDMSCALE_HOSTS", "LDMSCALE_HOST", "LDMSCALE_COORDINATOR"
LAUNCHED = "LDMSCALE_LAUNCHED"

_place = (0, 1)  # which of how many this process is, as far as it is connected


def connect() -> None:
    """Join the job's other processes, if it has any: before the first computation, and on all of them.

    Raises:
        UserError: the environment says half of what is needed, or the others cannot be found.
    """
    global _place
    told = HOSTS in os.environ
    if _place != (0, 1) or not (told or os.environ.get(LAUNCHED)):
        return
    arguments = _told() if told else {}
    if arguments.get("num_processes") == 1:
        return
    import jax

    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        if told:
            how = f"check that {COORDINATOR} ({os.environ[COORDINATOR]}) can be reached from every host"
        else:
            how = f"{LAUNCHED} is for Slurm's srun and TPU hosts; set {HOSTS}, {HOST} and {COORDINATOR} elsewhere"
        raise UserError(f"this job's processes cannot find each other ({str(error).splitlines()[0]}): {how}") from None
    _place = jax.process_index(), jax.process_count()


def _told() -> dict[str, Any]:
    """What the three variables say, as ``jax.distributed.initialize`` takes it."""
    try:
        count, index = int(os.environ[HOSTS]), int(os.environ.get(HOST, "0" if os.environ[HOSTS] == "1" else ""))
    except ValueError:
        count = index = -1
    if not 0 <= index < count or (count > 1 and not os.environ.get(COORDINATOR)):
        said = ", ".join(f"{name} is {os.environ.get(name, 'not set')}" for name in (HOSTS, HOST, COORDINATOR))
        raise UserError(f"{said}; these must be how many processes there are, which this is, and host:port of number 0")
    return {"num_processes": count, "process_id": index, "coordinator_address": os.environ.get(COORDINATOR)}


def index() -> int:
    """Which of the job's processes this is, from 0 on."""
    return _place[0]


def count() -> int:
    """How many processes the job has."""
    return _place[1]


def writes() -> bool:
    """Whether this process is the one that leaves files."""
    return _place[0] == 0


def barrier(name: str) -> None:
    """Wait until every process of the job is at the barrier ``name``."""
    if _place[1] > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agreed(value: Any) -> Any:
    """Host 0's ``value``, a tree of numbers and arrays, on every host: what is read of a shared disk may differ."""
    if _place[1] == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)


def everywhere(here: bool) -> bool:
    """Whether it is so on every host."""
    if _place[1] == 1:
        return here
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(here)).all())
