"""What commands share of their arguments: the parser, and the arguments that several of them take.

An argument's `dest` is the name of the library's argument that it is passed to. So errors of the library, which name
that argument, are shown with the flag (`Parser.flags`, used in `cli.main`).
"""

import argparse
from typing import NoReturn

from ..errors import UserError

TOKEN_SIGNS = (
    "In tokens, ␣ is a space, ⏎ a line break, ⇥ a tab, \\x1b a control character, and <E4 B8> are bytes of a character"
    " that several tokens make together."
)


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line and, for commands that take a recipe, its fields in the help."""

    takes_recipe = False

    def flags(self) -> dict[str, str]:
        """The flag of each argument, by its `dest`."""
        return {action.dest: action.option_strings[0] for action in self._actions if action.option_strings}

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += "; write a value that begins with - as --flag=-value"
        raise UserError(f"{message}; see {self.prog} --help")

    def format_help(self) -> str:
        text = super().format_help()
        if not self.takes_recipe:
            return text
        from ..recipe import fields_help

        lines = [f"  --{name} VALUE\n      {help} (default: {default})" for name, default, help in fields_help()]
        heading = "recipe fields (null unsets a field; --model.KEY sets any field of GPTConfig):"
        return "\n".join([text, heading, *lines, ""])


def add_recipe(parser: Parser, flags: str) -> argparse.Action:
    """The recipe and any of its fields; `flags` are the other arguments as the usage line shows them."""
    parser.takes_recipe = True
    parser.usage = f"{parser.prog} RECIPE.yaml {flags} [--section.key VALUE ...]"
    return parser.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe; flags change any of its fields")


def add_model(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model's or run's directory, or a Hub id")


def add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def add_top(parser: Parser, default: int) -> None:
    parser.add_argument(
        "--top", type=int, default=default, metavar="N", help=f"likeliest tokens to show (default: {default})"
    )


def check_top(top: int) -> None:
    if not 1 <= top <= 100:
        raise UserError("must be 1 to 100", field="top", value=top)
