"""`hf-gpt convert SOURCE DEST`"""

import argparse

from ..errors import UserError
from .arguments import Parser, real, whole
from .output import say

HELP = "convert GPT-2 weights to our GPT, or our GPT to a stock GPT-2"

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
        "--tokenizer", metavar="T", help="another tokenizer than the source's, named as in a recipe; or none"
    )
    parser.add_argument("--heads", type=whole, metavar="N", help="the book's n_heads (only --from book)")
    parser.add_argument(
        "--drop-rate", type=real, metavar="R", help="dropout (only --from book; default: that of the file, or 0.1)"
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.from_ != "book" and (arguments.heads, arguments.drop_rate) != (None, None):
        raise UserError("--heads and --drop-rate go with --from book; other sources contain them")
    from .. import conversion

    kinds = {"gpt2": conversion.from_gpt2, "book": conversion.from_book, "openai": conversion.from_openai}
    options = {"tokenizer": arguments.tokenizer}
    if arguments.from_ == "book":
        options |= {"heads": arguments.heads, "drop_rate": arguments.drop_rate}
    convert = kinds.get(arguments.from_, conversion.to_gpt2)
    for line in convert(arguments.source, arguments.dest, **options).describe():
        say(line)
