"""`hf-gpt batch RUN --step N`"""

import argparse

from .arguments import Parser, whole
from .output import print_json

HELP = "show the windows that steps of a run were trained on, with their documents"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run_dir", metavar="RUN", help="directory of the run")
    parser.add_argument("--step", type=whole, required=True, metavar="N", help="step, counted from 1")
    parser.add_argument("--to", dest="last", type=whole, metavar="M", help="last step (default: this one alone)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with all text and the token ids")
    parser.epilog = (
        "Rows are counted from 0, epochs from 1. The windows are those of the global batch, over all processes."
    )


def run(arguments: argparse.Namespace) -> None:
    from ..batch import Batches
    from ..errors import UserError

    last = arguments.step if arguments.last is None else arguments.last
    if last < arguments.step:
        raise UserError("is before --step", field="last", value=last)
    batches = Batches(arguments.run_dir)
    batches[last]  # refused before anything is printed
    steps = ((step, batches.plan.epoch(step) + 1, batches[step]) for step in range(arguments.step, last + 1))
    if arguments.json:
        found = [
            {"step": step, "epoch": epoch, "windows": [window.to_dict() for window in windows]}
            for step, epoch, windows in steps
        ]
        print_json({"run": arguments.run_dir, "steps": found})
        return
    for step, epoch, windows in steps:
        print(f"step {step:,}, epoch {epoch}: {len(windows):,} window{'s' * (len(windows) != 1)}")
        for window in windows:
            print("\n".join(f"  {line}" for line in window.describe()))
