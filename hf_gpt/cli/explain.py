"""`hf-gpt explain MODEL --text TEXT`"""

import argparse

from .arguments import TOKEN_SIGNS, Parser
from .output import check_output_file, print_json, say

HELP = "show the loss of a text, token by token"


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Show the loss of a text, token by token: the probability, rank, log-probability and loss of each token, and"
        " the likeliest tokens in its place. Then the mean loss and the perplexity, and the same loss from torch's"
        " cross_entropy."
    )
    parser.epilog = TOKEN_SIGNS
    parser.add_shared("model")
    parser.add_argument(
        "--text", required=True, metavar="TEXT", help="at least two tokens, at most the context length"
    )
    parser.add_shared("--top", default=3)
    parser.add_argument("--html", metavar="FILE", help="write a page with each token coloured by its loss")
    parser.add_shared("--device", "--json")


def run(arguments: argparse.Namespace) -> None:
    from ..checkpoint import load_model, short_name
    from ..explain.scores import explain
    from ..generation import refuse_broken_text

    refuse_broken_text("text", arguments.text)  # before the seconds that loading takes
    check_output_file(arguments.html, "html")
    explanation = explain(*load_model(arguments.model, arguments.device), arguments.text, arguments.top)
    if arguments.html is not None:
        from ..explain.page import page
        from ..storage import local_path, write_text

        write_text(local_path(arguments.html), page(explanation, short_name(arguments.model)))
        say(f"page       {arguments.html}")
    if arguments.json:
        print_json(explanation.to_dict())
    else:
        print(explanation.table())
