"""``ldmscale score``: how far two folders of images are apart."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ldmscale.cli.options import command, whole
from ldmscale.config.published import INCEPTION_DIMENSIONS
from ldmscale.errors import UserError

ABOUT = """\
Fréchet inception distance (FID) and kernel inception distance (KID) between two folders of images, the numbers that
clean-fid gives (mode "clean"), with a bootstrap interval of the FID: over other draws of A's images, B held fixed.

Images may have any size and any of clean-fid's formats; folders are searched to the bottom. The Inception network is
read from the file that clean-fid uses, inception-2015-12-05.pt, which you download once:
https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"""
EXAMPLE = """\
  ldmscale score generated/ real/ --inception weights/inception-2015-12-05.pt"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = command(commands, "score", "FID and KID between two folders of images", ABOUT, EXAMPLE)
    parser.add_argument("a", metavar="DIR_A", help="images to judge, such as generated ones")
    parser.add_argument("b", metavar="DIR_B", help="images to judge them by, such as real ones")
    parser.add_argument("--inception", metavar="FILE", help="clean-fid's inception-2015-12-05.pt (needed)")
    parser.add_argument("--batch", metavar="N", type=whole(), default=32, help="images a network call (default: 32)")
    parser.add_argument(
        "--replicates",
        metavar="N",
        type=whole(0),
        default=200,
        help="resamples behind the interval; 0: no interval (default: 200)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every digit")
    return parser


def run(args: argparse.Namespace) -> None:
    """Score and print."""
    if not args.inception:
        raise UserError(
            "score needs clean-fid's Inception network: download inception-2015-12-05.pt (`ldmscale score --help` says "
            "where) and give its path with --inception"
        )
    if args.replicates == 1:
        raise UserError("--replicates is 1: an interval needs at least 2 resamples (0: no interval)")
    from ldmscale.metrics.folders import file_features, image_files, kid
    from ldmscale.metrics.frechet import Reference

    files = {folder: image_files(folder) for folder in (args.a, args.b)}  # both, before the long work begins
    a, b = (file_features(files[f], args.inception, args.batch, _progress(f, len(files[f]))) for f in (args.a, args.b))
    result: dict[str, Any] = {"a": args.a, "b": args.b, "n_a": len(a), "n_b": len(b)}
    real = Reference(b)
    result |= {"fid": real.distance(a), "fid_interval": None, "kid": kid(a, b)}
    if args.replicates:
        from ldmscale.metrics.bootstrap import fid_replicates, interval

        print(
            f"interval from {args.replicates} resamples (--replicates 0 leaves it out) ...", file=sys.stderr, flush=True
        )
        result["fid_interval"] = interval(result["fid"], fid_replicates(a, real, args.replicates, seed=0))
    print(json.dumps(result, indent=1) if args.json else _text(result))


def _progress(folder: str, total: int) -> Any:
    """Writes how many of ``folder``'s images are done to standard error, on a terminal into one line over and over."""
    rewrites = sys.stderr.isatty()

    def say(done: int) -> None:
        if rewrites or done == total:
            start, end = ("\r", "" if done < total else "\n") if rewrites else ("", "\n")
            print(f"{start}{folder}: {done} of {total} images", end=end, file=sys.stderr, flush=True)

    return say


def _text(result: dict[str, Any]) -> str:
    rows = [["images", f"{result['n_a']} in {result['a']}, {result['n_b']} in {result['b']}"]]
    rows.append(["FID", f"{result['fid']:.4f}"])
    if result["fid_interval"]:
        low, high = result["fid_interval"]
        rows[-1][1] += f", 95 % interval {low:.4f} to {high:.4f}"
    rows.append(["KID", f"{result['kid']:.6f}"])
    lines = [f"{name:6}  {value}" for name, value in rows]
    few = min(result["n_a"], result["n_b"])
    if few <= INCEPTION_DIMENSIONS:
        lines += [
            "",
            f"With {few} images, no more than the {INCEPTION_DIMENSIONS} dimensions of the features, FID is far above "
            "its value for many images: compare it only with FIDs of as many images. KID is right on average for any "
            "number.",
        ]
    return "\n".join(lines)
