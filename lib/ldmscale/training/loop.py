"""The one training loop: every network of the study is a task that this loop steps, averages, saves and resumes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldmscale import hosts, preemption
from ldmscale.data.loader import batches
from ldmscale.errors import UserError
from ldmscale.jobs import Progress
from ldmscale.models.layers import backend
from ldmscale.runtime import forward_options
from ldmscale.storage import StorageError
from ldmscale.training.checkpoint import load_tree, save_tree
from ldmscale.training.gradients import gradients
from ldmscale.training.health import Health
from ldmscale.training.initial import drawn_together
from ldmscale.training.packing import Packing, is_packed
from ldmscale.training.sharding import Devices, fetch, host_batches, place_as_state, state_shardings
from ldmscale.training.states import States
from ldmscale.training.watch import Measured, Watch, record_of

Batch = dict[str, np.ndarray]

ALONE = Devices()
AHEAD = 4  # batches made while an accelerator computes

# For a program that runs once: to draw initial parameters takes a millisecond, to optimise the drawing fifteen seconds.
_ONCE = {"xla_backend_optimization_level": 0}


SAVES = 10, 1000  # a state is saved each tenth of a run, but so many steps apart at the least and at the most
SHORT = 150  # steps of a run that takes less time than optimising its program


class Task(Protocol):
    """What is special about a trained thing.

    A distilled one also has ``frozen``, a pytree of its teacher's parameters; its loss is then called as
    ``loss(params, batch, key, ema, frozen)``, with the running average of its own parameters as ``ema``.

    One that predicts at drawn noise levels of its ``schedule`` also has ``losses(...)``, called as ``loss``: the
    scalar, the timesteps [N] of its examples and the loss [N] of each, to be watched. Its loss is a mean over examples,
    in two parts, so that a batch can be cut: ``draw(batch, key)``, a tree of arrays [N,...] with all that is random,
    and ``drawn_losses(params, drawn[, ema, frozen])`` of any part of these.
    """

    batch_size: int

    def init(self, key: jax.Array) -> Any:
        """Initial parameters: drawn from ``key``, or made of the task's own pretrained ``params``."""

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """``rows`` of the batch of ``step``: a function of the two alone, so that a resumed run, and one on other
        hosts, sees the same data."""

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        """Scalar loss."""


@dataclass(frozen=True)
class TrainConfig:
    """AdamW: linear warm-up, then constant or (``decay``) cosine to zero at ``steps``; gradients clipped to norm 1.

    ``flat`` keeps all small parameters, their average and AdamW's moments in one vector each: half the program to
    compile, and no overhead per tensor. On several devices they stay tensors. The numbers are the same.
    """

    steps: int
    learning_rate: float
    warmup: int
    weight_decay: float
    seed: int
    decay: bool = False
    ema: float = 0.0
    flat: bool = True

    def schedule(self) -> optax.Schedule:
        after = optax.constant_schedule(self.learning_rate)
        if self.decay:
            after = optax.cosine_decay_schedule(self.learning_rate, max(1, self.steps - self.warmup))
        warm = optax.linear_schedule(self.learning_rate / max(1, self.warmup), self.learning_rate, self.warmup)
        return optax.join_schedules([warm, after], [self.warmup])

    def optimizer(self) -> optax.GradientTransformation:
        adamw = optax.adamw(self.schedule(), weight_decay=self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(1.0), adamw)


class TrainState(NamedTuple):
    """All that a step reads and writes; ``params`` and ``ema`` are trees, or packed (``TrainConfig.flat``)."""

    step: jax.Array
    params: Any
    ema: Any
    optimizer: Any


def ema_decay(decay: float, step: jax.Array) -> jax.Array:
    """min(decay, (1+n)/(10+n)), CompVis' LitEma: young averages forget the random start."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def packing(task: Task) -> Packing:
    """How the parameters of ``task`` are packed."""
    return Packing(_shapes(task))


def _shapes(task: Task) -> Any:
    """The shapes of the parameters of ``task``: a second of tracing."""
    return jax.eval_shape(lambda params: _from(task, params).init(jax.random.key(0)), _pretrained(task))


def _pretrained(task: Task) -> Any:
    return getattr(task, "params", None)


def _from(task: Task, params: Any) -> Task:
    """``task`` with its pretrained ``params`` as a program's argument: they would otherwise become constants of it."""
    return task if params is None else replace(task, params=params)


def initial_state(task: Task, config: TrainConfig) -> TrainState:
    """The state before the first step; ``jax.eval_shape`` of it is the state's shapes."""
    # Bits drawn as one array would all lie on every device of a mesh.
    params = drawn_together(task.init, config.seed) if config.flat else task.init(jax.random.key(config.seed))
    return _begun(params, config)


def _begun(params: Any, config: TrainConfig) -> TrainState:
    if config.flat:
        params = Packing(params).pack(params)
    # A second buffer: the step donates the state, and a buffer can be donated once.
    ema = jax.tree.map(jnp.array, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, config.optimizer().init(params))


def build_step(
    task: Task, config: TrainConfig, shardings: TrainState | None = None, short: bool = False, accumulate: int = 1,
    packed: Packing | None = None,
) -> Callable[..., tuple[TrainState, Measured]]:  # fmt: skip
    """The compiled ``(state, batch[, frozen]) -> (state, measured)``; its key is fold_in(seed, step), so steps are
    replayable. ``frozen`` is the task's: closed over, a teacher's parameters would become constants of the program.

    On a mesh ``shardings`` says where each array of the state lies (:mod:`ldmscale.training.sharding`), before the step
    and after it. A ``short`` run's program is not optimised: it would compile for longer than it runs. The batch is
    cut into ``accumulate`` microbatches, one after the other, whose gradients' mean is the batch's. ``packed`` is
    :func:`packing` of the task, where it is known.

    On the CPU these are two programs, gradients and update, which takes half the time with emitters that do not suit
    the gradients' compilation (:func:`ldmscale.runtime.forward_options`).
    """
    optimizer = config.optimizer()
    tree = (packed or packing(task)).unpack if config.flat else lambda params: params
    differentiated = gradients(task, tree, accumulate, shardings and shardings.params)

    def gradient(params: Any, batch: Batch, n: jax.Array, ema: Any, frozen: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(config.seed), n)
        given = () if frozen is None else (tree(ema), frozen)
        return differentiated(params, batch, key, *given)

    def update(state: TrainState, found: Any) -> tuple[TrainState, Measured]:
        (loss, levels), grads = found
        updates, opt = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        d = ema_decay(config.ema, state.step)
        ema = jax.tree.map(lambda e, p: d * e + (1 - d) * p, state.ema, params)
        # The clipping computes the same norm: the compiler makes one of the two.
        return TrainState(state.step + 1, params, ema, opt), Measured(loss, optax.tree.norm(grads), levels)

    options = _ONCE if short else None
    if apart := shardings is None and backend() == "cpu":
        gradient = jax.jit(gradient, compiler_options=options)
        update = jax.jit(update, donate_argnums=0, compiler_options=forward_options())

    def step(state: TrainState, batch: Batch, frozen: Any = None) -> tuple[TrainState, Measured]:
        return update(state, gradient(state.params, batch, state.step, state.ema, frozen))

    # What is measured is of the whole batch, so every device has it.
    placed = {} if shardings is None else {"out_shardings": (shardings, shardings.step)}
    return step if apart else jax.jit(step, donate_argnums=0, compiler_options=options, **placed)


def train(
    task: Task,
    config: TrainConfig,
    folder: str | Path,
    digest: str,
    keep: Iterable[int],
    log_every: int = 50,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    draw: Callable[[Any], np.ndarray] | None = None,
    programs: dict[TrainConfig, Callable] | None = None,
    devices: Devices = ALONE,
) -> dict[int, Path]:
    """Train ``task`` up to ``max(keep)`` steps and keep its averaged weights at each step of ``keep`` (0: the first).

    ``folder`` holds the last state (:mod:`ldmscale.training.states`: everything needed to go on, always as tensors),
    ``step-<n>.safetensors`` (EMA weights) and what :mod:`ldmscale.training.watch` writes, pictures too if ``draw``
    makes them (uint8 [N,S,S,3]) of averaged weights. A run that was killed goes on from the last state with
    bit-identical results on the CPU; a state made under another ``digest`` is not used. ``programs`` keeps the compiled
    step for further runs whose tasks differ in their batches and parameters alone, not in their loss.

    All devices of all of the job's hosts are used, as ``devices`` says: a batch is cut over them, and a host reads its
    own rows. On which devices a run was begun does not matter to how it goes on. Host 0 alone writes, but for states.

    Told to stop (:mod:`ldmscale.preemption`), it saves after the running step and ends the process.

    Returns the kept files by step, there for every host. Raises UserError if the loss stops being finite or explodes
    (:mod:`ldmscale.training.health`; the last good state is kept), and if devices and batch do not fit.
    """
    folder, keep, mesh, accumulate = Path(folder), sorted(keep), devices.mesh(), 1
    if mesh is not None:
        config = replace(config, flat=False)
    if mesh is not None or devices.accumulate > 1:
        accumulate = devices.microbatches(task.batch_size, mesh)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*-*.safetensors") if hosts.writes() else ():
        left.unlink()  # what a killed run was writing
    kept = {step: folder / f"step-{step}.safetensors" for step in keep}

    def fresh(params: Any) -> TrainState:
        return initial_state(_from(task, params), config)

    params = _shapes(task)
    packed = Packing(params) if config.flat else None
    shapes = jax.eval_shape(lambda params: _begun(params, config), params)
    shardings = None if mesh is None else state_shardings(shapes, mesh)

    def stored(state: TrainState) -> TrainState:
        return jax.tree.map(lambda x: packed.unpack(x) if is_packed(x) else x, state, is_leaf=is_packed)

    like = jax.eval_shape(stored, shapes)
    if mesh is not None:
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)
    states = States(folder, digest)
    state = _resume(states, digest, like, kept)
    start = 0 if state is None else int(state.step)
    if start >= keep[-1]:
        states.close()
        return kept
    if state is None:
        pretrained, placed = _pretrained(task), {}
        if mesh is not None:
            pretrained, placed = place_as_state(pretrained, mesh), {"out_shardings": shardings}
        state = jax.jit(fresh, compiler_options=_ONCE, **placed)(pretrained)
        del pretrained
    elif config.flat:
        whole = jax.tree.map(np.asarray, state)
        state = jax.tree.map(lambda x, part: Packing.pack(part) if is_packed(x) else part, shapes, whole,
                             is_leaf=is_packed)  # fmt: skip
        state = jax.tree.map(jnp.asarray, state)
    if start:
        say(f"resumed at step {start} of {keep[-1]}")
    watch = Watch(folder, start or -1) if hosts.writes() else None

    def keep_weights(step: int) -> None:
        # On the host, where cutting the vector into a few hundred arrays has not to be compiled.
        averaged = packed.unpack(jax.tree.map(np.asarray, state.ema)) if packed else state.ema
        whole = fetch(averaged)
        pictures = None if draw is None else draw(averaged)  # by all hosts
        if watch:
            save_tree(kept[step], whole, digest=digest, step=step)
            if pictures is not None:
                watch.pictures(step, pictures)

    if 0 in kept and not start:
        keep_weights(0)
    programs = {} if programs is None else programs
    if config not in programs:
        programs[config] = build_step(task, config, shardings, keep[-1] <= SHORT, accumulate, packed)
    step_fn = programs[config]
    frozen = getattr(task, "frozen", None)
    frozen = jax.device_put(frozen) if mesh is None else place_as_state(frozen, mesh)
    read = task.batch if mesh is None else host_batches(task, mesh)
    ahead = 0 if jax.default_backend() == "cpu" else AHEAD  # whose threads the step itself needs
    save_every = min(max(keep[-1] // 10, SAVES[0]), SAVES[1])
    measured: list[Measured] = []
    health = Health(folder, start)
    with preemption.noted():
        for step, batch in enumerate(batches(read, start, keep[-1], ahead), start):
            state, found = step_fn(state, batch, frozen)
            measured.append(found)
            done = step + 1
            health.step(done, found)
            if done == start + 1:  # compiled: what follows tells how fast it goes
                progress, clock = Progress(say, keep[-1]), time.monotonic()
                progress.skip(start)
            stop = preemption.asked(done) and done < keep[-1]
            save = stop or done in kept or done % save_every == 0
            if save or done % log_every == 0:
                whole = jax.device_get(state) if save and packed else state
                health.state(done, whole) if save else health.now()
                record = record_of(done, jax.device_get(measured), len(next(iter(batch.values()))))
                seconds = max(time.monotonic() - clock, 1e-6)
                record["images_per_second"] = round(record.pop("images") / seconds, 2)
                if watch:
                    watch.record(record)
                progress(
                    done, f"step {done}/{keep[-1]}  loss {record['loss']:.4f}  {len(measured) / seconds:.1f} steps/s"
                )
                measured = []
                if done in kept:
                    keep_weights(done)
                if save:
                    states.save(done, stored(whole))
                    health.saved = done
                if stop:
                    states.close()
                    say(f"told to stop: saved at step {done} of {keep[-1]}, to go on from there")
                    preemption.leave()
                clock = time.monotonic()
    states.close()
    if watch:
        watch.close()
    hosts.barrier(f"trained {folder}")
    return kept


def _resume(states: States, digest: str, like: TrainState, kept: dict[int, Path]) -> TrainState | None:
    """The last state, if every weight that it should have left behind is there."""
    state = states.latest(like)
    if state is None:
        return None
    due = [(step, path) for step, path in kept.items() if step <= int(state.step)]
    return state if hosts.agreed(hosts.writes() and all(_is_kept(*one, digest, like.ema) for one in due)) else None


def _is_kept(step: int, path: Path, digest: str, like: Any) -> bool:
    try:
        return load_tree(path, like)[1] == {"digest": digest, "step": step}
    except StorageError:  # no word on the weights
        raise
    except UserError:
        return False
