"""What a compiled program sends between devices: its collectives, counted in the program's own text (HLO)."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)")
_OPERATION = re.compile(r" ([\w-]+)\(")  # the first after the result's type, whose brackets follow no blank and word
_CALLS = re.compile(r"(calls|to_apply|body|condition|(?:true|false)_computation|branch_computations)=(\{[^}]*\}|%\S+)")
_NAME = re.compile(r"%([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind: how many run, and the bytes of one device's whole messages (see :func:`collectives`)."""

    count: int
    size: int


def collectives(text: str) -> dict[str, Traffic]:
    """The collectives of a compiled program's ``text`` (``compiled.as_text()``), by kind; kinds that it lacks are left
    out.

    The size of one is the larger of what a device puts in and what it gets out, so that gathering an array, reducing
    it, and reducing and scattering it all count as the whole array. A collective in a loop counts as often as the loop
    runs, where the program says how often, and else once. One whose result is a tuple is one, however many arrays
    the compiler has combined in it.

    Raises:
        ValueError: ``text`` is no compiled program's.
    """
    entry, computations = _computations(text)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    stack = [(entry, 1)]
    while stack:
        name, times = stack.pop()
        found = computations[name]
        for kind, size in found.collectives:
            counts[kind] += times
            sizes[kind] += times * size
        stack += [(called, times * trips) for called, trips in found.calls]
    return {kind: Traffic(counts[kind], sizes[kind]) for kind in KINDS if counts[kind]}


class _Computation:
    def __init__(self) -> None:
        self.collectives: list[tuple[str, int]] = []
        self.calls: list[tuple[str, int]] = []
        self.below: int | None = None  # of a loop's condition: what the loop counts up to, from 0 as JAX's loops do


def _computations(text: str) -> tuple[str, dict[str, _Computation]]:
    """The name of the entry computation, and all computations by name."""
    entry, here = "", _Computation()
    found: defaultdict[str, _Computation] = defaultdict(_Computation)
    results: dict[str, int] = {}  # bytes, by name
    constants: dict[str, int] = {}
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            here = found[header[2]]
            entry = header[2] if header[1] else entry
            continue
        instruction = _INSTRUCTION.match(line)
        operation = instruction and _OPERATION.search(instruction[2])
        if not operation:
            continue
        size = _bytes(instruction[2][: operation.start()])
        results[instruction[1]] = size
        rest, name = instruction[2][operation.end() :], operation[1]
        operands = _NAME.findall(rest.split(")", 1)[0])
        kind = name.removesuffix("-start")
        if kind in KINDS:
            given = sum(results.get(operand, 0) for operand in operands)
            # What starts one and ends it elsewhere has its operands beside its results, but for a reduction.
            beside = given if name != kind and kind != "all-reduce" else 0
            here.collectives.append((kind, max(given, size - beside)))
        if name == "constant" and rest.split(")")[0].isdigit():
            constants[instruction[1]] = int(rest.split(")")[0])
        if name == "compare" and "direction=LT" in rest and "ROOT" in line:
            here.below = constants.get(operands[-1])
        called = [(key, _NAME.findall(names)) for key, names in _CALLS.findall(rest)]
        # The compiler for CPUs says how often a loop runs, that for TPUs does not.
        trips = _TRIPS.search(rest)
        below = next((found[names[0]].below for key, names in called if key == "condition"), None)
        for key, names in called:
            times = (int(trips[1]) if trips else below or 1) if key == "body" else 1
            here.calls += [(one, times) for one in names]
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    return entry, found


def _bytes(shapes: str) -> int:
    """Bytes of all arrays named in ``shapes``, such as ``(f32[8,64]{1,0}, pred[])``."""
    total = 0
    for kind, bits, dims in _ARRAY.findall(shapes):
        elements = math.prod(int(n) for n in dims.split(",") if n)
        total += -(-elements * (8 if kind == "pred" else int(bits)) // 8)
    return total
