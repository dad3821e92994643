"""`hf-gpt decode MODEL --prompt TEXT`"""

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import TOKEN_SIGNS, Parser, add_json, add_model, add_top, check_top
from .output import check_output_file, hide_loading_bars, print_json, say

if TYPE_CHECKING:
    from ..explain.decoding import Decoding

HELP = "how temperature, top-k and top-p change the distribution of the next token"

_MOST_BARS = 20


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "How greedy decoding, temperature, top-k and top-p change the distribution of the token after a prompt, and"
        " how often each token is drawn."
    )
    parser.epilog = (
        "- stands for a token that cannot be drawn: top-k or top-p exclude it, greedy decoding takes another, or the"
        f" model's generation config forbids it. {TOKEN_SIGNS}"
    )
    add_model(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        default=[0.1, 1.0, 5.0],
        metavar="T",
        help="one or several, 0 is greedy (default: the book's 0.1 1 5)",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="keep the likeliest tokens that together have probability P"
    )
    parser.add_argument(
        "--draws", dest="num_draws", type=int, default=1000, metavar="N", help="draws to count (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=123, metavar="S", help="seed of the draws (default: 123)")
    add_top(parser, 10)
    parser.add_argument("--png", metavar="FILE", help=f"draw a bar chart of at most {_MOST_BARS} tokens")
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    from ..checkpoint import load_model
    from ..explain.decoding import check_settings, compare, next_token_logits
    from ..explain.token_text import show_token
    from ..generation import check_prompt

    settings = {
        "temperatures": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "num_draws": arguments.num_draws,
        "seed": arguments.seed,
    }
    check_prompt(arguments.prompt)  # before the seconds that loading takes
    check_settings(**settings)
    check_top(arguments.top)
    check_output_file(arguments.png, "png")
    hide_loading_bars()
    model, tokenizer = load_model(arguments.model)
    logits = next_token_logits(model, tokenizer, arguments.prompt)
    found = compare(logits, functools.partial(show_token, tokenizer), arguments.prompt, **settings)
    if arguments.png is not None:
        _draw(found, arguments.png, min(arguments.top, _MOST_BARS))
    if arguments.json:
        print_json(found.to_dict(arguments.top))
    else:
        print(found.table(arguments.top))


def _draw(found: "Decoding", file: str, top: int) -> None:
    import logging

    from ..explain.chart import chart, missing_characters
    from ..report.plots import write_png

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a font without a regular weight will do
    write_png(Path(file), chart(found, top))
    say(f"chart      {file}")
    if missing := missing_characters(found, top):
        say(f"note       no font of this machine has {missing}: shown by number; Noto Sans CJK has Chinese")
