"""What commands share of their arguments: the parser, and the arguments that several of them take.

An argument's `dest` is the name of the library's argument that it is passed to. So errors of the library, which name
that argument, are shown with the flag (`Parser.flags`, used in `cli.main`).
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from ..display import whole_number
from ..errors import UserError

TOKEN_SIGNS = (
    "In tokens, ␣ is a space, ⏎ a line break, ⇥ a tab, \\x1b a control character; <E4 B8> are bytes of a character"
    " that is cut into several tokens."
)


def whole(text: str) -> int:
    """A whole number, also `10k`; which ones make sense is for the library to say."""
    try:
        number = whole_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is not a whole number") from None
    if not -(2**63) < number < 2**63:
        raise argparse.ArgumentTypeError(f"{text[:40]}: must be below 2**63")
    return number


def real(text: str) -> float:
    """A finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is not a finite number")
    return number


def names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name for part in text.split(",") if (name := part.strip())]


def count(text: str) -> int:
    """A number of tokens to show."""
    if not 1 <= whole(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 to 100")
    return whole(text)


_SHARED: dict[str, dict[str, Any]] = {
    "model": {"metavar": "MODEL", "help": "directory of a model or run, or a Hub id"},
    "--prompt": {"required": True, "metavar": "TEXT", "help": "the text to continue"},
    "--top-k": {"type": whole, "metavar": "K", "help": "sample from the K likeliest tokens"},
    "--top-p": {
        "type": real,
        "metavar": "P",
        "help": "sample from the likeliest tokens whose probabilities add up to P",
    },
    "--seed": {"type": whole, "default": 123, "metavar": "S", "help": "random seed of the sampling (default: 123)"},
    "--top": {"type": count, "metavar": "N", "help": "likeliest tokens to show (default: %(default)s)"},
    "--device": {
        "default": "auto",
        "metavar": "D",
        "help": "cpu, cuda, cuda:1 or mps (default: cuda, else mps, else cpu)",
    },
    "--json": {"action": "store_true", "help": "print one JSON object on stdout"},
}


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line and, for commands that take a recipe, its fields in the help."""

    recipe: argparse.Action | None = None

    def add_shared(self, *names: str, **changes: Any) -> None:
        """Arguments that several commands take; `changes` are of all of `names`."""
        for name in names:
            self.add_argument(name, **{**_SHARED[name], **changes})

    def add_recipe(self, flags: str) -> None:
        """The recipe and any of its fields; `flags` are the other arguments as the usage line shows them."""
        self.usage = f"{self.prog} RECIPE.yaml {flags} [--section.key VALUE ...]"
        self.recipe = self.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe; flags change its fields")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's. Where there is a recipe, what it does not know are fields of it, before or after the recipe.

        Their values are taken out too: argparse would take the first of them for the recipe.
        """
        if self.recipe is None:
            return super().parse_known_args(args, namespace)
        waiting, own, fields = list(args), [], []
        while waiting:
            argument = waiting.pop(0)
            if argument == "--":
                own += [argument, *waiting]
                break
            if not argument.startswith("--") or argument.partition("=")[0] in self._option_string_actions:
                own.append(argument)
                continue
            fields.append(argument)
            if "=" not in argument and waiting and not waiting[0].startswith("--"):
                fields.append(waiting.pop(0))
        self._fields = fields
        namespace, unknown = super().parse_known_args(own, namespace)
        return namespace, unknown + fields

    def flags(self) -> dict[str, str]:
        """The flag of each argument, by its `dest`."""
        return {action.dest: action.option_strings[0] for action in self._actions if action.option_strings}

    def error(self, message: str) -> NoReturn:
        if self.recipe is not None and message.endswith(f"required: {self.recipe.metavar}"):
            fields = "".join(f" {text}" for text in self._fields)
            example = f"{self.prog} configs/quickstart.yaml{fields}"
            raise UserError(f"{self.recipe.metavar} is missing; flags change a recipe, as in: {example}")
        if message.endswith("expected one argument"):
            message += "; write a value that begins with - as --flag=-value"
        raise UserError(f"{message}; see {self.prog} --help")

    def format_help(self) -> str:
        text = super().format_help()
        if self.recipe is None:
            return text
        from ..recipe import fields_help

        lines = [f"  --{name} VALUE\n      {help} (default: {default})" for name, default, help in fields_help()]
        heading = "recipe fields (null unsets a field; --model.KEY sets any field of the model's configuration):"
        return "\n".join([text, heading, *lines, ""])
