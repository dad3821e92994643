"""`hf-gpt decode MODEL --prompt TEXT`"""

import argparse
import functools
from typing import TYPE_CHECKING

from .arguments import TOKEN_SIGNS, Parser, real, whole
from .output import check_output_file, print_json, say

if TYPE_CHECKING:
    from ..explain.decoding import Decoding

HELP = "show how temperature, top-k and top-p change the next token's distribution"

_MOST_BARS = 20


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Show the distribution of the token after a prompt at several temperatures, with top-k and top-p applied, and"
        " how often each token comes in random draws."
    )
    parser.epilog = (
        "- marks a token that greedy decoding, top-k, top-p or the model's generation config leaves out."
        f" {TOKEN_SIGNS}"
    )
    parser.add_shared("model", "--prompt")
    parser.add_argument(
        "--temperature",
        type=real,
        nargs="+",
        default=[0.1, 1.0, 5.0],
        metavar="T",
        help="up to six, 0 is greedy (default: 0.1 1 5)",
    )
    parser.add_shared("--top-k", "--top-p")
    parser.add_argument(
        "--draws", dest="num_draws", type=whole, default=1000, metavar="N", help="draws to count (default: 1000)"
    )
    parser.add_shared("--seed")
    parser.add_shared("--top", default=10)
    parser.add_argument(
        "--png", metavar="FILE", help=f"draw a bar chart of at most {_MOST_BARS} tokens: a .png, .pdf or .svg"
    )
    parser.add_shared("--device", "--json")


def run(arguments: argparse.Namespace) -> None:
    from ..checkpoint import load_model
    from ..explain.decoding import check_settings, compare, next_token_logits
    from ..explain.token_text import show_token
    from ..generation import check_prompt
    from ..report.notebook import picture_format

    settings = {name: getattr(arguments, name) for name in ("top_k", "top_p", "num_draws", "seed")}
    settings["temperatures"] = arguments.temperature
    check_prompt(arguments.prompt)  # before the seconds that loading takes
    check_settings(**settings)
    check_output_file(arguments.png, "png")
    if arguments.png is not None:
        picture_format(arguments.png, "png")
    model, tokenizer = load_model(arguments.model, arguments.device)
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
    from ..report.plots import write_picture
    from ..storage import local_path

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a font without a regular weight will do
    write_picture(local_path(file), chart(found, top))
    say(f"chart      {file}")
    if missing := missing_characters(found, top):
        say(f"note       no font of this machine has {missing}: shown by number; Noto Sans CJK has Chinese")
