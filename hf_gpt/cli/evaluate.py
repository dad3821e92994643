"""`hf-gpt evaluate MODEL|RUN`"""

import argparse

from ..errors import UserError, one_line
from .arguments import Parser, names, whole
from .output import print_json, say

HELP = "measure loss, perplexity and bits per byte of a model on a text or of a run on its own, or run benchmarks"
_OF_TEXTS = ("config", "split", "text_column", "stride", "tokens", "drop_blank_lines")
_OF_TASKS = ("include_path", "checkpoints", "revisions", "num_fewshot", "limit")


def add_arguments(parser: Parser) -> None:
    parser.add_shared("model")
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--text",
        metavar="FILE",
        help="a file, directory or glob (txt, jsonl, parquet, csv); default: each text that the run is validated on",
    )
    text.add_argument("--dataset", metavar="NAME", help="a dataset's Hub id or folder")
    text.add_argument(
        "--tasks", metavar="T[,T ...]", type=names, help="tasks of lm-eval, such as blimp; pip install 'hf_gpt[eval]'"
    )
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
    parser.add_argument(
        "--include-path", metavar="DIR", help="folder of further tasks (YAML); lm-eval's own need the Hub"
    )
    parser.add_argument(
        "--checkpoints", choices=["all", "milestones"], help="of a run, instead of its best one, for --tasks"
    )
    parser.add_argument(
        "--revisions", metavar="R[,R ...]", type=names, help="branches, tags or commits of a Hub id, for --tasks"
    )
    parser.add_argument("--num-fewshot", metavar="N", type=whole, help="examples before each question of --tasks")
    parser.add_argument("--limit", metavar="N", type=whole, help="first N documents of each of --tasks only")
    parser.add_shared("--device", "--json")


def run(arguments: argparse.Namespace) -> None:
    flags, others = arguments.parser.flags(), _OF_TASKS if arguments.tasks is None else _OF_TEXTS
    if given := [flags[name] for name in others if getattr(arguments, name) not in (None, False)]:
        what = "goes with --tasks" if arguments.tasks is None else "goes with --text or --dataset, not with --tasks"
        raise UserError(f"{given[0]}: {what}")
    if arguments.tasks is not None:
        _benchmark(arguments)
        return
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


def _benchmark(arguments: argparse.Namespace) -> None:
    from ..benchmarks import benchmark

    found = benchmark(
        arguments.model,
        arguments.tasks,
        include_path=arguments.include_path,
        checkpoints=arguments.checkpoints,
        revisions=arguments.revisions or (),
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        device=arguments.device,
        say=say,
    )
    if arguments.json:
        print_json({"evaluations": found})
        return
    for line in found:
        for task, entry in line["results"].items():
            figures = "  ".join(f"{name} {value:.4f}" for name, value in entry["metrics"].items())
            print(one_line(f"{line['model']}   {task}   {figures}"))
