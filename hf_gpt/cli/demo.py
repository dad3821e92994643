"""`hf-gpt demo MODEL`"""

import argparse

from ..errors import UserError
from .arguments import Parser, whole
from .output import say

HELP = "serve a page on which a model continues prompts, with its next-token distribution"


def add_arguments(parser: Parser) -> None:
    parser.epilog = (
        "Only this machine can open the page. Ctrl-C ends it. For a run it shows several checkpoints side by side."
        " Needs pip install 'hf_gpt[demo]'."
    )
    parser.add_shared("model")
    parser.add_argument("--port", type=whole, metavar="N", help="port (default: the first free one from 7860)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--space", metavar="DIR", help="only write a Hugging Face Space to a new directory")


def run(arguments: argparse.Namespace) -> None:
    from ..demo import page, space

    if arguments.space is not None and (arguments.port is not None or arguments.open):
        raise UserError("--port and --open are for a page that is served; --space only writes files")
    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise UserError("must be 1 to 65535", field="port", value=arguments.port)
    if arguments.space is None:
        page.serve(
            arguments.model,
            lambda url: say(f"page       {url}   (Ctrl-C ends it)"),
            port=arguments.port,
            open_browser=arguments.open,
        )
        return
    for line in space.write_space(arguments.model, arguments.space):
        say(line)
