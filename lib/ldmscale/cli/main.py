"""``ldmscale <command>``.

A command is a module, listed in ``COMMANDS``: ``add(commands)`` declares its arguments
(:func:`ldmscale.cli.options.command`) and returns their parser, ``run(args)`` does the work and returns the exit
status, or None for 0. JAX and PyTorch take seconds to import, so a command imports what is heavy inside ``run``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from ldmscale.cli import advise, estimate, export, family, preflight, sample, score, watch, why
from ldmscale.errors import UserError
from ldmscale.text import visible

COMMANDS = (family, estimate, sample, export, score, advise, watch, why, preflight)
ABOUT = """\
Tools beside the study. The study itself, from images to figures, is run by Snakemake (`make study`); these commands
answer single questions, each by itself."""


def parser() -> argparse.ArgumentParser:
    """The whole command line; every command leaves its ``run`` in the parsed arguments."""
    top = argparse.ArgumentParser("ldmscale", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"ldmscale {version('ldmscale')}")
    commands = top.add_subparsers(title="commands", metavar="<command>", prog="ldmscale")
    for module in COMMANDS:
        module.add(commands).set_defaults(run=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ldmscale`` with ``arguments`` (the process's own by default) and return its exit status.

    A :class:`UserError` is its sentence on standard error and status 1; Ctrl-C is status 130.
    """
    top = parser()
    args = top.parse_args(arguments)
    if not hasattr(args, "run"):
        top.print_help()
        return 0
    try:
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Who read the output has gone (`ldmscale family | head`); Python would complain once more when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        print(visible(f"error: {error.filename or 'a file'}: {error.strerror or error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
