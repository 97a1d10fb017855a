"""What every workflow script does around its work: threads, compile cache, log, and errors as sentences."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ldmscale.errors import UserError
from ldmscale.runtime import use_compile_cache, use_threads

COMPILE_CACHE = ".cache/jax"


@contextmanager
def job(log: str, threads: int) -> Iterator[Callable[[str], None]]:
    """Run a script's body; yields ``say(line)``, which writes to ``log``.

    A :class:`UserError` ends the process with status 1 and its sentence on standard error and in the log; any other
    exception is logged whole and ends it with its last line, so that a user sees what failed and where to read more.
    """
    use_threads(threads)
    use_compile_cache(os.environ.get("LDMSCALE_COMPILE_CACHE", COMPILE_CACHE))
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(log, "w") as file:

        def say(line: str) -> None:
            file.write(f"[{time.monotonic() - began:7.1f} s] {line}\n")
            file.flush()

        try:
            yield say
            say("done")
        except UserError as error:
            say(str(error))
            sys.exit(f"error: {error}")
        except Exception as error:
            traceback.print_exc(file=file)
            sys.exit(f"error: {type(error).__name__}: {error} (the whole story is in {log})")
