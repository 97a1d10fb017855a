"""What process settings and the one-vector state gain in training on a CPU.

`python benchmarks/cpu_settings.py [FILTERS ...]`; each line is the embedded study's pretraining step on random latents,
in processes of their own that take turns: CPU seconds to compile it and CPU milliseconds a step (the least of the
rounds, for the machine may be shared).
"""

import json
import os
import subprocess
import sys

ROUNDS, STEPS = 2, 40
SETTINGS = {  # name: (environment, one vector, short)
    "as the study runs": ({}, True, False),
    "parameters as tensors": ({}, False, False),
    "XLA's fusion emitters": ({"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=true"}, True, False),
    "optimisation level 3": ({"XLA_FLAGS": "--xla_backend_optimization_level=3"}, True, False),
    "LLVM's strength reduction and unrolling": (
        {"XLA_FLAGS": "--xla_backend_extra_options=-enable-misched"},
        True,
        False,
    ),
    "not optimised (short runs)": ({}, True, True),
    "compiled in 32 parts": ({"XLA_FLAGS": "--xla_cpu_parallel_codegen_split_count=32"}, True, False),
    "glibc's own allocation": ({"ITS_OWN_HEAP": "1"}, True, False),
}
ONE = """
import json, os, sys, time
import numpy as np
from ldmscale.runtime import keep_memory, use_threads
use_threads(1)
"ITS_OWN_HEAP" in os.environ or keep_memory()
import jax
from ldmscale.config.read import read_study
from ldmscale.data.encoded import Latents
from ldmscale.diffusion.schedule import Schedule
from ldmscale.models.unet import UNetConfig
from ldmscale.tasks.pretrain import PretrainTask
from ldmscale.training.loop import TrainConfig, build_step, initial_state

filters, flat, short, steps = json.loads(sys.argv[1])
study, rng = read_study([]), np.random.default_rng(0)
net, pretrain = UNetConfig(**study.network(filters)), study.config["pretrain"]
mean = rng.normal(size=(64, study.latent_size, study.latent_size, net.in_channels)).astype(np.float32)
text = study.text_params()
states = rng.normal(size=(64, text["context_length"], text["width"])).astype(np.float32)
data = Latents(mean=mean, std=0 * mean, states=states, first=np.arange(65), null=states[0], scale=1.0)
task = PretrainTask(net, Schedule(), data, pretrain["batch"], pretrain["text_dropout"], 0)
config = TrainConfig(1000, 1e-3, 10, 0.01, seed=0, ema=0.99, flat=flat)
state = jax.jit(lambda: initial_state(task, config), compiler_options={"xla_backend_optimization_level": 0})()
step = build_step(task, config, short=short)
began = time.process_time()
state, loss = jax.block_until_ready(step(state, task.batch(0)))
compiled, took = time.process_time() - began, []
for n in range(steps):
    began = time.process_time()
    state, loss = jax.block_until_ready(step(state, task.batch(n)))
    took.append(time.process_time() - began)
print(json.dumps([compiled, float(np.median(took))]))
"""


def measured(filters: int, name: str) -> tuple[float, float]:
    changes, flat, short = SETTINGS[name]
    done = subprocess.run(
        [sys.executable, "-c", ONE, json.dumps([filters, flat, short, STEPS])],
        env={**os.environ, **changes}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    for filters in map(int, sys.argv[1:] or ("8", "32")):
        print(f"\n| {filters} filters | compiling, CPU s | a step, CPU ms |\n|---|---:|---:|")
        found = [[measured(filters, name) for name in SETTINGS] for _ in range(ROUNDS)]
        for name, *rounds in zip(SETTINGS, *found, strict=True):
            compiled, step = (min(values) for values in zip(*rounds, strict=True))
            print(f"| {name} | {compiled:.1f} | {1e3 * step:.1f} |", flush=True)


if __name__ == "__main__":
    main()
