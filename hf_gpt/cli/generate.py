"""`hf-gpt generate MODEL --prompt TEXT`"""

import argparse

from .arguments import Parser, real, whole

HELP = "continue a prompt"


def add_arguments(parser: Parser) -> None:
    parser.epilog = (
        "Decoding is greedy unless --temperature, --top-k or --top-p is given. Past its context length our GPT"
        " continues the end of the text. Others do as transformers does: with computed positions (RoPE) they go on,"
        " with learned ones prompt and new tokens must fit."
    )
    parser.add_shared("model", "--prompt")
    parser.add_argument(
        "--max-new-tokens", type=whole, default=50, metavar="N", help="tokens to add at most (default: 50)"
    )
    parser.add_argument(
        "--temperature", type=real, metavar="T", help="0: greedy; below 1: likelier tokens; above 1: more varied ones"
    )
    parser.add_shared("--top-k", "--top-p", "--seed", "--device")


def run(arguments: argparse.Namespace) -> None:
    from ..checkpoint import load_model
    from ..generation import check_request, generate_text

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    settings = {name: getattr(arguments, name) for name in names}
    check_request(arguments.prompt, **settings)  # before the seconds that loading takes
    print(generate_text(*load_model(arguments.model, arguments.device), arguments.prompt, **settings))
