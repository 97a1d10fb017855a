"""Told to stop: a training job that gets a signal finishes its step, saves, and ends with a status of its own.

Clouds send SIGTERM before they take a machine away, Slurm before it cancels a job, and ``--signal=USR1@120`` sends
SIGUSR1 that many seconds before the time limit. Between :func:`noted`'s beginning and end they only leave a note.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from ldmscale import hosts

STATUS = 75  # sysexits' EX_TEMPFAIL: what is tried again goes on from the state that was saved
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_told = False


def _note(number: int, frame: FrameType | None) -> None:
    global _told
    _told = True


def _pass_on(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def noted() -> Iterator[None]:
    """Within: SIGTERM and SIGUSR1 do not end this process, :func:`asked` tells of them. For the main thread; in another
    one, that gets no signals, nothing changes."""
    global _told
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _told = False
    # On several hosts SIGTERM is left to JAX, which has caught it since they met, and tells all of them of it.
    handlers = {signal.SIGUSR1: _pass_on} if hosts.count() > 1 else dict.fromkeys(SIGNALS, _note)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked(step: int) -> bool:
    """Whether to save and stop, asked by every host after each ``step`` that is done: all of them say yes after the
    same one, the next that none has passed when one of them was told."""
    if hosts.count() == 1:
        return _told
    from jax.experimental import multihost_utils

    # By steps and not by calls, for Orbax asks too, of the step that it saves.
    return multihost_utils.reached_preemption_sync_point(step)


def leave() -> NoReturn:
    """End the process with :data:`STATUS`; what it had to do is saved, and its line is said."""
    raise SystemExit(STATUS)
