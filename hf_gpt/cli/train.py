"""`hf-gpt train RECIPE.yaml`"""

import argparse
import sys

from .arguments import Parser, add_recipe
from .output import say, set_up_hub

HELP = "train a model, or resume training"


def add_arguments(parser: Parser) -> None:
    add_recipe(parser, "[--from RUN@STEP]")
    parser.add_argument(
        "--from",
        dest="parent",
        metavar="RUN@STEP",
        help="start from this checkpoint of another run, with its optimizer state",
    )
    parser.epilog = (
        "A run that stopped is resumed by the same command. Exit codes: 0 done, 1 the run could not continue,"
        " 2 wrong input, 75 saved and stopped by SIGTERM or SIGUSR1, 130 saved and stopped by Ctrl-C."
    )


def run(arguments: argparse.Namespace) -> None:
    from ..recipe import Recipe
    from ..run import train

    recipe = Recipe.from_yaml(arguments.recipe, arguments.overrides)
    if recipe.hub.repo_id is not None:
        set_up_hub()
    result = train(recipe, parent=arguments.parent)
    if not result.is_main_process:
        return
    for line in result.summary():
        say(line)
    program = sys.argv[0] if sys.argv[0].endswith("hf-gpt") else "hf-gpt"  # which may not be on the PATH
    say(f'try        {program} generate {result.output_dir} --prompt "..." --temperature 0.8 --top-k 40')
