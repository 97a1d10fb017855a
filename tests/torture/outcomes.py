"""What came of a fault.

``equal`` (in the end the files of the undisturbed run), ``refused`` (a sentence that names the file), ``skipped`` (this
machine cannot do it) or ``SILENT`` (wrong files under a good status, a traceback, no word, a hang).
"""

from __future__ import annotations

from folders import Folder
from study import Ended, Job, Reference, Running, files_of

EQUAL, REFUSED, SKIPPED, SILENT = "equal", "refused", "skipped", "SILENT"
Outcome = tuple[str, str]


def judged(folder: Folder, reference: Reference, said: str = "", but: str | None = None, gone: bool = False) -> str:
    """Whether ``folder`` holds the files of the undisturbed run, ``but`` the one that was damaged; ``gone``: no others,
    but not all of them."""
    if "Traceback (most recent call last)" in said:
        return f"{SILENT}: a traceback: {said.strip().splitlines()[-1][:150]}"
    here = files_of(folder)
    wrong = {name for name in here.keys() | reference.files.keys() if here.get(name) != reference.files.get(name)}
    wrong.discard(but)
    if gone:
        wrong &= here.keys()
    return f"{SILENT}: {len(wrong)} files differ: {', '.join(sorted(wrong)[:4])}" if wrong else EQUAL


def again(job: Job, folder: Folder, reference: Reference) -> str:
    """Run the job once more, the fault over: it must end as if nothing had been."""
    ended = ended_of(Running(job, folder, reference.cache))
    if ended.status:
        return f"{SILENT}: it does not run again: {ended.said.strip()[-150:]}"
    return judged(folder, reference)


def refused(ended: Ended, *names: str) -> str:
    """What to make of a job that failed: a sentence with one of ``names`` in it."""
    if ended.sentence is None:
        return f"{SILENT}: status {ended.status}, no sentence: {ended.said.strip()[-150:]}"
    if not any(name in ended.sentence for name in names):
        return f"{SILENT}: a sentence that does not name it: {ended.sentence[:150]}"
    return f"{REFUSED}: {ended.sentence[:90]}"


def ended_of(running: Running) -> Ended:
    ended = running.wait()
    if ended is None:
        running.kill()
        return Ended(0, "it hangs: killed\nTraceback (most recent call last)")
    return ended
