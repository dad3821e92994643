"""`hf-gpt replay RUN`"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .arguments import Parser, whole
from .output import say

if TYPE_CHECKING:
    from ..replay import Compared

HELP = "train steps of a run again and compare losses and weights with the recorded ones"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run_dir", metavar="RUN", help="directory of the run")
    parser.add_argument(
        "--from",
        dest="start",
        type=whole,
        metavar="S",
        help="0, or a step with a checkpoint (default: the oldest)",
    )
    parser.add_argument(
        "--to", dest="stop", type=whole, metavar="T", help="last step (default: of the newest checkpoint)"
    )
    parser.epilog = "The exit code is 1 if anything differs, or if no step has a record to compare with."


def run(arguments: argparse.Namespace) -> int:
    from ..replay import replay

    steps = replay(arguments.run_dir, arguments.start, arguments.stop, watch=_show, warn=_warn)
    if not steps:  # not the process that compares
        return 0
    print(steps.in_short())
    return 0 if 0 < steps.num_exact == steps.num_recorded else 1


def _warn(text: str) -> None:
    say(f"note: {text}")


def _show(step: int, compared: Sequence["Compared"]) -> None:
    wrong = [one for one in compared if not one.matches]
    for one in wrong:
        print(f"step {step}: {one.what} was {one.published}, is {one.repeated}", flush=True)
    if compared and not wrong:
        print(f"step {step}: {', '.join(one.what for one in compared)} match", flush=True)
