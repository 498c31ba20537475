"""The command ``dode``: ``dode distill | sample | solvers | info FILE | run | train``; ``dode --help`` tells more."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dode.cli.options import parser


def main(argv: Sequence[str] | None = None, prog: str = "dode") -> int:
    """Run one command; the exit status: 0, 2 after one line on stderr, 130 after Ctrl-C."""
    try:
        args = parser(prog).parse_args(argv)
        args.run(args)
        return 0
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        message = " ".join(str(error).split())
    except RuntimeError as error:  # what torch raises when memory is full; anything else is a bug
        if "memory" not in str(error):
            raise
        message = "memory is full; take a smaller --batch-size, --nfe or --scale"
    except KeyboardInterrupt:
        return 130
    print(f"{prog}: {message}", file=sys.stderr)
    return 2
