"""``ldmscale why``: what a file of a study was made from, link by link, back to the config and the data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmscale.cli.options import command
from ldmscale.errors import UserError

if TYPE_CHECKING:
    from ldmscale.cells.lineage import Link

ABOUT = """\
Prints the chain of stages behind a file of a study, from the file back to the config and the data: of each stage the
file that says what it was made from, its digest, and the settings that it read. Says of each whether what lies there
was made from the study's config as `config.yaml` in its folder has it.

Exit status: 0 if every link is, 1 if one is missing or was made from another config."""
EXAMPLE = """\
  ldmscale why results/embedded/figures/fig09.png"""
WIDTH = 110  # characters of a line of settings
CURRENT, MISSING, OTHER = "ok", "missing", "made from another config"


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = command(commands, "why", "what a figure, table or cell was made from", ABOUT, EXAMPLE)
    parser.add_argument("file", metavar="FILE", help="any file in results/<study>/")
    parser.add_argument("--all", action="store_true", help="settings in full")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the chain; 1 where a link of it is broken."""
    from ldmscale.cells.chain import Chain
    from ldmscale.cells.lineage import Lineage
    from ldmscale.cells.plan import Plan
    from ldmscale.config.read import read_yaml
    from ldmscale.config.study import Study

    folder = next((parent for parent in Path(args.file).absolute().parents if (parent / "config.yaml").is_file()
                   and parent.parent.name == "results"), None)  # fmt: skip
    if folder is None:
        raise UserError(f"{args.file} is not in a study's folder: give a file of results/<study>/")
    file = Path(args.file).absolute().relative_to(folder).as_posix()
    try:
        end = Lineage(Chain(Plan(Study(read_yaml(folder / "config.yaml"))))).of(file)
    except KeyError as error:
        raise UserError(
            f"{folder / 'config.yaml'} lacks {error}: another version of ldmscale wrote it, run snakemake again"
        ) from None
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{folder / 'config.yaml'} is no config of a study ({error}): run snakemake again") from None
    states = {link.file: state(folder, link) for link in end.walk()}
    print("\n".join(lines(end, states, args.all)))
    broken = [file for file, found in states.items() if found != CURRENT]
    if broken:
        print(f"\n{folder / broken[0]} is {states[broken[0]]}: everything after it is to be made again (run snakemake)")
    return 1 if broken else 0


def state(folder: Path, link: Link) -> str:
    """Whether ``link`` in the study's ``folder`` is there and of its digest: CURRENT, MISSING or OTHER."""
    path = folder / link.file
    if not path.is_file():
        return MISSING
    return CURRENT if link.digest in (None, recorded(path)) else OTHER


def recorded(path: Path) -> str | None:
    """The digest that a manifest, the table of scores or a figure carries; None where it carries none."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return (pq.read_schema(path).metadata or {}).get(b"digest", b"").decode()
        if path.suffix == ".png":
            from PIL import Image

            with Image.open(path) as image:
                return image.info.get("digest")
        return json.loads(path.read_text()).get("digest")
    except (OSError, ValueError, AttributeError):  # damaged
        return None


def lines(end: Link, states: dict[str, str], whole: bool = False) -> list[str]:
    """The tree that ends in ``end``: a line a link, its settings below it; what stands above is not repeated."""
    out, seen = [], set()

    def show(link: Link, depth: int) -> None:
        indent = "  " * depth
        if link.file in seen:
            out.append(f"{indent}{link.file}  (above)")
            return
        seen.add(link.file)
        mark = "" if states[link.file] == CURRENT else f"  <- {states[link.file].upper()}"
        out.append(f"{indent}{link.file}  [{link.stage} {link.digest or 'without digest'}]{mark}")
        text = _settings(link.settings)
        if text:
            out.append(f"{indent}    {text if whole or len(text) <= WIDTH else text[: WIDTH - 3] + '...'}")
        for before in link.inputs:
            show(before, depth + 1)

    show(end, 0)
    return out


def _settings(settings: dict[str, Any]) -> str:
    if isinstance(settings.get("cells"), list):
        settings = {**settings, "cells": len(settings["cells"])}
    told = [
        f"{key} {json.dumps(value, sort_keys=True)}" for key, value in settings.items() if value not in (None, {}, [])
    ]
    return ", ".join(sorted(told, key=len))  # single numbers before whole networks
