"""`hf-gpt tokenize RECIPE.yaml`"""

import argparse

from .arguments import Parser
from .output import print_json, say

HELP = "tokenise the text of a recipe and show what training will see"


def add_arguments(parser: Parser) -> None:
    parser.add_recipe("[--json]")
    parser.add_shared("--json")


def run(arguments: argparse.Namespace) -> None:
    from ..recipe import Recipe
    from ..training.data import prepare_data
    from ..training.model import find_pretrained

    recipe = Recipe.from_yaml(arguments.recipe, arguments.overrides)
    data = prepare_data(recipe, find_pretrained(recipe.model))
    if arguments.json:
        print_json(data.facts())
        return
    for line in data.describe():
        say(line)
