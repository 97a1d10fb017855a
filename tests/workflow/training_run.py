"""A small pretraining run in a process of its own, which can be told when to kill itself as `kill -9` does, or to stop.

python training_run.py FOLDER [MOMENT]; MOMENT is one of
    SIGTERM:N  when it asks for the batch of step N, by this or another signal that asks to stop
    batch:N    when it asks for the batch of step N
    half:N     with the Nth file that it saves half-written
    before:N   with the Nth file written, not yet renamed
    after:NAME when the file NAME has been renamed, and nothing after it done
"""

import os
import signal
import sys

import numpy as np

from ldmscale import provenance
from ldmscale.data.encoded import Latents
from ldmscale.diffusion.schedule import Schedule
from ldmscale.models.unet import UNetConfig
from ldmscale.runtime import use_compile_cache
from ldmscale.tasks.pretrain import PretrainTask
from ldmscale.training import checkpoint, loop
from ldmscale.training.loop import TrainConfig, train

STEPS, KEEP = 24, (0, 6, 24)  # a state every other step


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(task, moment):
    """Make ``task``, or the functions that save and rename files, end the process, or signal it, at ``moment``."""
    kind, _, which = moment.partition(":")
    saved = 0
    save_file, replace = checkpoint.save_file, os.replace

    def batch(step, *rows):
        if kind == "batch" and step == int(which):
            die()
        if kind.startswith("SIG") and step == int(which):
            os.kill(os.getpid(), signal.Signals[kind])
        return PretrainTask.batch(task, step, *rows)

    def save(tensors, path, metadata):
        nonlocal saved
        saved += 1
        save_file(tensors, path, metadata)
        if kind == "half" and saved == int(which):
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def rename(source, target):
        if kind == "before" and saved == int(which):
            die()
        replace(source, target)
        if kind == "after" and os.path.basename(target) == which:
            die()

    object.__setattr__(task, "batch", batch)
    checkpoint.save_file, provenance.os.replace = save, rename


def main(folder, moment=None):
    use_compile_cache(os.environ["LDMSCALE_COMPILE_CACHE"])
    draw = np.random.default_rng(0)
    mean, std, states = (draw.normal(size=s).astype(np.float32) for s in ((40, 4, 4, 4), (40, 4, 4, 4), (60, 3, 8)))
    first = np.arange(41) * 60 // 40
    latents = Latents(mean, 0.1 * abs(std), states, first, states[0], scale=0.9)
    net = UNetConfig(4, (1,), 1, (True,), heads=2, norm_groups=2, context_width=8)
    task = PretrainTask(net, Schedule(), latents, batch_size=8, text_dropout=0.3, seed=5)
    if moment:
        kill_at(task, moment)
    loop.SAVES = 2, 2
    train(task, TrainConfig(STEPS, 1e-2, 3, 0.01, seed=5, ema=0.9), folder, "digest", KEEP)


if __name__ == "__main__":
    main(*sys.argv[1:])
