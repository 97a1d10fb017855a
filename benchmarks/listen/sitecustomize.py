"""With this folder on PYTHONPATH every Python process that uses JAX writes, as it ends, how long it compiled: a JSON
file in the folder $LDMSCALE_COMPILED. For benchmarks/whole.py."""

import atexit
import json
import os
import sys
import time
from importlib.abc import MetaPathFinder


class AfterJax(MetaPathFinder):
    """Finds nothing. JAX imports its interpreters late, when its monitoring is there."""

    def find_spec(self, name, path=None, target=None):
        if name == "jax._src.interpreters.mlir":
            sys.meta_path.remove(self)
            listen()


class Outermost:
    """Seconds of tracing, lowering, compiling or reading from the cache, each once: tracing goes on inside tracing.

    To be registered with JAX's monitoring, which calls it as each ends.
    """

    def __init__(self):
        self.seconds, self.programs, self._spans = 0.0, 0, []

    def __call__(self, event, seconds, **_):
        if not event.startswith("/jax/core/compile/"):
            return
        began = time.monotonic() - seconds
        while self._spans and self._spans[-1][0] >= began:
            self.seconds -= self._spans.pop()[1]
        self._spans.append((began, seconds))
        self.seconds += seconds
        self.programs += event.endswith("backend_compile_duration")


def listen():
    from jax._src import monitoring

    took, cached = Outermost(), []

    def happened(event, **_):
        cached.extend([event] * (event == "/jax/compilation_cache/cache_hits"))

    def write():
        spent = {"compile": took.seconds, "programs": took.programs, "from cache": len(cached)}
        with open(os.path.join(os.environ["LDMSCALE_COMPILED"], f"{os.getpid()}.json"), "w") as file:
            json.dump({"script": os.path.basename(sys.argv[0]), **spent}, file)

    monitoring.register_event_duration_secs_listener(took)
    monitoring.register_event_listener(happened)
    atexit.register(write)


if "LDMSCALE_COMPILED" in os.environ:
    os.makedirs(os.environ["LDMSCALE_COMPILED"], exist_ok=True)
    sys.meta_path.insert(0, AfterJax())
