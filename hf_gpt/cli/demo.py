"""`hf-gpt demo MODEL`"""

import argparse

from ..errors import UserError
from .arguments import Parser, add_model
from .output import hide_loading_bars, say

HELP = "a page in the browser where a model continues prompts, with its next-token distribution"


def add_arguments(parser: Parser) -> None:
    parser.epilog = (
        "The page is at 127.0.0.1 until Ctrl-C. For a run it shows several checkpoints side by side."
        " Needs pip install 'hf_gpt[demo]'."
    )
    add_model(parser)
    parser.add_argument("--port", type=int, metavar="N", help="(default: the first free one from 7860)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--space", metavar="DIR", help="instead, write the files of a Hugging Face Space into a new or empty directory"
    )


def run(arguments: argparse.Namespace) -> None:
    from ..demo import page, space

    if arguments.space is not None and (arguments.port is not None or arguments.open):
        raise UserError("--port and --open are for a page that is served; --space only writes files")
    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise UserError("must be 1 to 65535", field="port", value=arguments.port)
    hide_loading_bars()
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
