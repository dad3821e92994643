"""`hf-gpt generate MODEL --prompt TEXT`"""

import argparse

from .arguments import Parser, add_model
from .output import hide_loading_bars

HELP = "continue a prompt; greedy unless a sampling flag is given"


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=50, metavar="N", help="(default: 50)")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 is greedy, below 1 prefers likely tokens, above 1 levels them",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the likeliest tokens that together have probability P"
    )
    parser.add_argument("--seed", type=int, default=123, metavar="S", help="seed of the sampling (default: 123)")


def run(arguments: argparse.Namespace) -> None:
    from ..checkpoint import load_model
    from ..generation import check_request, generate_text

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    settings = {name: getattr(arguments, name) for name in names}
    check_request(arguments.prompt, **settings)  # before the seconds that loading takes
    hide_loading_bars()
    print(generate_text(*load_model(arguments.model), arguments.prompt, **settings))
