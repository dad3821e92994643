"""`hf-gpt convert SOURCE DEST`"""

import argparse

from ..errors import UserError
from .arguments import Parser
from .output import say

HELP = "convert other models to ours, and ours to stock GPT-2"

_EXAMPLES = """\
examples:
  hf-gpt convert openai-community/gpt2 my-gpt2 --from gpt2
      a GPT-2 from the Hub or a directory: .safetensors or .bin, in one file or in shards
  hf-gpt convert model.pth my-gpt --from book --heads 12
      a state dict of the GPT in the book "Build a Large Language Model From Scratch"; it does not contain n_heads
  hf-gpt convert models/124M my-gpt2 --from openai
      OpenAI's TensorFlow release: hparams.json, encoder.json, vocab.bpe, model.ckpt.* (needs tensorflow-cpu)
  hf-gpt convert runs/quickstart stock-gpt2 --to gpt2
      a model or run of ours as a GPT2LMHeadModel, which needs neither this package nor remote code

The logits of source and result are compared, and DEST is written only if they agree.
"""


def add_arguments(parser: Parser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLES
    parser.add_argument("source", metavar="SOURCE", help="a model's directory, a Hub id, or the book's .pth file")
    parser.add_argument("dest", metavar="DEST", help="a new or empty directory")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--from", dest="from_", choices=["gpt2", "book", "openai"], help="what SOURCE is")
    kind.add_argument("--to", choices=["gpt2"], help="what DEST becomes; SOURCE is ours")
    parser.add_argument(
        "--tokenizer", metavar="T", help="none, or another tokenizer than the source's, named as in a recipe"
    )
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads (only --from book: its n_heads)")
    parser.add_argument(
        "--drop-rate",
        type=float,
        metavar="R",
        help="dropout (only --from book: its drop_rate; default: the file's, else 0.1)",
    )


def run(arguments: argparse.Namespace) -> None:
    for flag, value in (("--heads", arguments.heads), ("--drop-rate", arguments.drop_rate)):
        if value is not None and arguments.from_ != "book":
            raise UserError(f"{flag} goes with --from book; other sources contain it")
    from .. import conversion

    source, dest, tokenizer = arguments.source, arguments.dest, arguments.tokenizer
    if arguments.to == "gpt2":
        done = conversion.to_gpt2(source, dest, tokenizer=tokenizer)
    elif arguments.from_ == "gpt2":
        done = conversion.from_gpt2(source, dest, tokenizer=tokenizer)
    elif arguments.from_ == "openai":
        done = conversion.from_openai(source, dest, tokenizer=tokenizer)
    else:
        heads, drop_rate = arguments.heads, arguments.drop_rate
        done = conversion.from_book(source, dest, heads=heads, tokenizer=tokenizer, drop_rate=drop_rate)
    for line in done.describe():
        say(line)
