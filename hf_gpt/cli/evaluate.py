"""`hf-gpt evaluate MODEL|RUN`"""

import argparse

from ..errors import UserError
from .arguments import Parser, whole
from .output import print_json, say

HELP = "measure loss, perplexity and bits per byte of a model on a text, or of a run on its validation texts"


def add_arguments(parser: Parser) -> None:
    parser.add_shared("model")
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--text",
        metavar="FILE",
        help="a file, directory or glob (txt, jsonl, parquet, csv); default: each text that the run is validated on",
    )
    text.add_argument("--dataset", metavar="NAME", help="a dataset's Hub id or folder")
    parser.add_argument("--dataset-config", dest="config", metavar="C", help="which of the dataset's configurations")
    parser.add_argument("--split", metavar="S", help="split (default: test for --dataset, train for --text)")
    parser.add_argument("--text-column", metavar="NAME", help="column that contains the text")
    parser.add_argument(
        "--stride", metavar="N", type=whole, help="tokens between window starts (default: the context length)"
    )
    parser.add_argument("--tokens", metavar="N", type=whole, help="score the first N tokens only (default: all)")
    parser.add_argument(
        "--drop-blank-lines",
        action="store_true",
        help="leave lines without a visible character out, as data.drop_blank_lines of a recipe does",
    )
    parser.add_shared("--device", "--json")


def run(arguments: argparse.Namespace) -> None:
    from ..text_evaluation import evaluate_corpus, evaluate_run

    how = {"stride": arguments.stride, "tokens": arguments.tokens, "device": arguments.device}
    of_text = {
        "config": arguments.config,
        "split": arguments.split,
        "text_column": arguments.text_column,
        "drop_blank_lines": arguments.drop_blank_lines,
    }
    if arguments.text is None and arguments.dataset is None:
        if odd := [name for name, value in of_text.items() if value]:
            raise UserError("goes with a text or a dataset that is named", field=odd[0])
        results = evaluate_run(arguments.model, **how)
        if arguments.json:
            print_json({text: result.to_dict() for text, result in results.items()})
            return
        width = max(len("text"), *map(len, results))
        print(f"{'text':{width}}  {'loss':>8}  {'perplexity':>10}  {'bits per byte':>13}")
        for text, one in results.items():
            print(f"{text:{width}}  {one.loss:8.4f}  {one.perplexity:10.2f}  {one.bits_per_byte:13.4f}")
        return
    split = arguments.split or ("train" if arguments.dataset is None else "test")
    source = arguments.dataset if arguments.text is None else arguments.text
    result = evaluate_corpus(arguments.model, source, **{**of_text, "split": split}, **how)
    if arguments.json:
        print_json(result.to_dict())
        return
    print(f"loss            {result.loss:.4f} nats per token")
    print(f"perplexity      {result.perplexity:.2f}")
    print(f"bits per byte   {result.bits_per_byte:.4f}")
    say(
        f"{result.scored_tokens:,} of {result.tokens:,} tokens scored (the first has no context),"
        f" {result.bytes:,} bytes; windows of {result.context_length}, stride {result.stride}"
    )
