"""Told to stop: what a signal does to a process, and to all that it works with."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ldmscale import preemption

RUN = Path(__file__).with_name("preemption_run.py")


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_noted_and_nothing_more(number):
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    with preemption.noted():
        assert not preemption.asked(1)
        os.kill(os.getpid(), number)
        assert preemption.asked(2) and preemption.asked(3)
    assert {number: signal.getsignal(number) for number in preemption.SIGNALS} == before
    with preemption.noted():
        assert not preemption.asked(1)  # the note was of another training


def test_a_thread_trains_without_signals():
    asked = []

    def work():
        with preemption.noted():
            asked.append(preemption.asked(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]


def test_leaving_has_a_status_of_its_own():
    with pytest.raises(SystemExit) as left:
        preemption.leave()
    assert left.value.code == os.EX_TEMPFAIL


def test_two_hosts_stop_after_the_same_step_and_save_together(tmp_path):
    """One of them is told, both hear of it; each writes what its devices hold, and finds it again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    told = {"LDMSCALE_HOSTS": "2", "LDMSCALE_COORDINATOR": coordinator}
    processes = [
        subprocess.Popen(
            [sys.executable, RUN, tmp_path],
            env={**os.environ, **told, "LDMSCALE_HOST": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [preemption.STATUS] * 2, said
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert first == second and first["same"] and 10 < first["stopped"] == first["steps"] < 1000
    assert os.listdir(tmp_path / "states") == [str(first["stopped"])]
