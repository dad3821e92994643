"""`hf-gpt plot RUN [RUN ...]`"""

import argparse

from .arguments import Parser
from .output import say

HELP = "write the report of a run, or a comparison of several runs"


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "run_dirs", metavar="RUN", nargs="+", help="directory of a run, also of one that is in progress or failed"
    )
    parser.add_argument(
        "--output",
        metavar="PLACE",
        help="folder to write to (default: that of the run; for several runs: comparison), or a .png, .pdf or .svg for"
        " the curves alone",
    )
    parser.add_argument("--x", choices=("steps", "tokens", "seconds"), default="steps", help="x-axis (default: steps)")
    parser.add_argument("--log", action="store_true", help="logarithmic axes for loss and perplexity")


def run(arguments: argparse.Namespace) -> None:
    from ..report.page import plot

    written = plot(arguments.run_dirs, arguments.output, x=arguments.x, log=arguments.log, say=say)
    for line in (*written.figures, *written):
        print(line)
