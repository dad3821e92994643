"""`hf-gpt train RECIPE.yaml`"""

import argparse
import sys

from .arguments import Parser
from .output import say

HELP = "train a model, or resume training"


def add_arguments(parser: Parser) -> None:
    parser.add_recipe("[--from RUN@STEP]")
    parser.add_argument(
        "--from", dest="parent", metavar="RUN@STEP", help="continue another run from this step, in a new output_dir"
    )
    parser.epilog = (
        "The same command resumes a run that stopped. Exit codes: 0 finished; 1 the run could not continue; 2 wrong"
        " input; 75 stopped by SIGTERM, SIGUSR1 or SIGHUP (the terminal was closed), after saving; 130 stopped by"
        " Ctrl-C, after saving."
    )


def run(arguments: argparse.Namespace) -> None:
    from ..recipe import Recipe
    from ..run import train

    recipe = Recipe.from_yaml(arguments.recipe, arguments.overrides)
    result = train(recipe, parent=arguments.parent)
    if not result.is_main_process:
        return
    for line in result.summary():
        say(line)
    program = sys.argv[0] if sys.argv[0].endswith("hf-gpt") else "hf-gpt"  # which may not be on the PATH
    say(f'try        {program} generate {result.output_dir} --prompt "..." --temperature 0.8 --top-k 40')
