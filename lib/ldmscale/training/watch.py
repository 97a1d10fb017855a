"""What a training run leaves beside its weights to be watched by: ``metrics.jsonl``, event file, pictures.

``metrics.jsonl`` has an object a line and record: ``step``, ``loss``, ``grad_norm`` (means since the record before),
``images_per_second`` (without compiling and saving), ``time`` (Unix seconds) and, of tasks that predict at drawn
noise levels, ``loss_by_level``: means of :data:`LEVELS` equal parts of the schedule from the least noise up, null where
no example fell. ``samples/step-<n>.png`` are grids of pictures. The event file has all of this again, for TensorBoard:
``tensorboard --logdir results/<study>/models``.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ldmscale.provenance import atomic_path

LEVELS = 10
METRICS = "metrics.jsonl"
NEEDED = {"step", "time", "loss", "grad_norm", "images_per_second"}
EVENTS = "events.out.tfevents.*"
# What tensorboardX imports where it finds it, seconds of every start, for what is not used here.
UNUSED = ("torch", "boto3", "google.cloud.storage", "comet_ml", "onnx")


@contextmanager
def _without(modules: tuple[str, ...]) -> Iterator[None]:
    """Within it ``modules`` that are not imported yet cannot be."""
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


class Measured(NamedTuple):
    """What a step tells of itself: ``loss``, ``grad_norm`` before clipping, and of a task with ``losses`` the sum of
    its examples' losses and their number at each noise level (``levels`` [2, LEVELS])."""

    loss: jax.Array
    grad_norm: jax.Array
    levels: jax.Array | None


def by_level(t: jax.Array, losses: jax.Array, steps: int) -> jax.Array:
    """Sums of ``losses`` [N] and their numbers, [2, LEVELS], by equal parts of the ``steps`` that ``t`` [N] are of."""
    at = (t[:, None] * LEVELS // steps == jnp.arange(LEVELS)).astype(losses.dtype)
    return jnp.stack([losses @ at, at.sum(0)])


def record_of(step: int, measured: list[Measured], batch: int) -> dict[str, Any]:
    """The record of the steps up to ``step``, but with ``images``, their number, instead of their rate."""
    record = {"step": step, "time": round(time.time(), 3), "images": len(measured) * batch}
    for name in ("loss", "grad_norm"):
        record[name] = float(np.mean([getattr(found, name) for found in measured], dtype=np.float64))
    if not math.isfinite(record["grad_norm"]):
        record["grad_norm"] = None  # too large for float32, and JSON has no infinity
    if measured[0].levels is not None:
        sums, counts = np.sum([found.levels for found in measured], axis=0, dtype=np.float64)
        record["images"] = int(counts.sum())
        record["loss_by_level"] = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
    return record


class Watch:
    """The records of the run in ``folder`` that goes on after ``step`` (-1: begins anew); later ones, a killed run's or
    another config's, go.

    The event file is written anew from the records that stay, so that no step is in it twice; it, and the other files,
    are whole after every call.
    """

    def __init__(self, folder: Path, step: int):
        self._folder, self._step = folder, step

    @cached_property
    def _events(self) -> Any:
        """The event file, opened with the first record or picture: what a run of another config has left goes then, for
        one that fails before it must not take them."""
        with _without(UNUSED):
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
        self._summary, self._event, folder = summary, Event, self._folder
        for left in (*folder.glob(EVENTS), *folder.glob(".*.jsonl"), *folder.glob("samples/.*.png")):
            left.unlink()  # a run's before, and what a killed one was writing
        events = EventsWriter(str(folder / "events"))
        # A TensorBoard that is open drops what it has read of the file before.
        events.write_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        for record in _rewound(folder / METRICS, self._step):
            events.write_event(self._scalars(record))
        for path in sorted((folder / "samples").glob("step-*.png"), key=_step_of):
            if _step_of(path) > self._step:
                path.unlink()
            else:
                with Image.open(path) as image:
                    events.write_event(self._picture(_step_of(path), np.asarray(image), path.stat().st_mtime))
        return events

    def record(self, record: dict[str, Any]) -> None:
        """Keep the record of a step (see the module)."""
        events = self._events
        with open(self._folder / METRICS, "a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        events.write_event(self._scalars(record))
        events.flush()

    def pictures(self, step: int, images: np.ndarray) -> None:
        """Keep ``images`` uint8 [N,S,S,3] as the grid of ``step``."""
        events, whole, path = self._events, grid(images), self._folder / "samples" / f"step-{step}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(whole).save(temporary)
        events.write_event(self._picture(step, whole, path.stat().st_mtime))
        events.flush()

    def close(self) -> None:
        self._events.close()

    def _scalars(self, record: dict[str, Any]) -> Any:
        values = {tag: record[tag] for tag in ("loss", "grad_norm", "images_per_second")}
        levels = enumerate(record.get("loss_by_level", ()))
        values |= {f"loss_by_level/{level}": loss for level, loss in levels}
        event = self._event(step=record["step"], wall_time=record["time"])
        for tag, value in values.items():
            if value is not None:
                event.summary.value.add(tag=tag, simple_value=value)
        return event

    def _picture(self, step: int, image: np.ndarray, when: float) -> Any:
        made = self._summary.image("samples", image, dataformats="HWC")
        return self._event(step=step, wall_time=when, summary=made)


def grid(images: np.ndarray) -> np.ndarray:
    """uint8 [N,S,S,3] -> [rows S, columns S, 3], as square as can be; places without an image are white."""
    count, size = images.shape[:2]
    columns = math.ceil(count**0.5)
    rows = math.ceil(count / columns)
    places = np.full((rows * columns, size, size, 3), 255, np.uint8)
    places[:count] = images
    return places.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _parsed(line: str) -> dict[str, Any] | None:
    """The record of a line that is whole."""
    try:
        record = json.loads(line)
        return record if record.keys() >= NEEDED and line.endswith("\n") else None
    except (ValueError, AttributeError):
        return None


def _rewound(path: Path, step: int) -> list[dict[str, Any]]:
    """The records up to ``step``; later ones, and those that cannot be read, go from the file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [(line, record) for line in lines if (record := _parsed(line))]
    kept = [(line, record) for line, record in records if record["step"] <= step]
    if len(kept) < len(lines):
        with atomic_path(path) as temporary:
            temporary.write_text("".join(line for line, _ in kept))
    return [record for _, record in kept]
