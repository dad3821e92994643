"""`hf-gpt explain MODEL --text TEXT`"""

import argparse
from pathlib import Path

from .arguments import TOKEN_SIGNS, Parser, add_json, add_model, add_top, check_top
from .output import check_output_file, hide_loading_bars, print_json, say

HELP = "the loss of a text, token by token"


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "From logits to loss: for each token of a text its probability, rank, log-probability and loss, and likelier"
        " tokens; then their sum, mean and perplexity, and the same loss from torch's cross_entropy."
    )
    parser.epilog = TOKEN_SIGNS
    add_model(parser)
    parser.add_argument(
        "--text", required=True, metavar="TEXT", help="at least two tokens, at most the context length"
    )
    add_top(parser, 3)
    parser.add_argument("--html", metavar="FILE", help="write a page with each token coloured by its loss")
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    from ..checkpoint import load_model
    from ..explain.scores import check_text, explain

    check_text(arguments.text)  # before the seconds that loading takes
    check_top(arguments.top)
    check_output_file(arguments.html, "html")
    hide_loading_bars()
    explanation = explain(*load_model(arguments.model), arguments.text, arguments.top)
    if arguments.html is not None:
        from ..explain.page import page
        from ..storage import write_text

        write_text(Path(arguments.html), page(explanation, arguments.model))
        say(f"page       {arguments.html}")
    if arguments.json:
        print_json(explanation.to_dict())
    else:
        print(explanation.table())
