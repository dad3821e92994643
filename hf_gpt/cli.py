"""The command line: `hf-gpt COMMAND ...`.

Each command parses its arguments, makes one call into the package, and prints. What a person reads goes to stderr;
stdout carries the result alone (the text, or with `--json` one JSON object). Input that cannot work ends in one line
and exit code 2, without a traceback unless `--debug` asks for it.

Modules are imported inside the commands: each waits for what it needs, and `--help` for nothing but the package.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import HubError, RunPreempted, RunStopped, UserError

_EXIT_USER_ERROR = 2
_EXIT_FAILED = 1
_EXIT_PREEMPTED = 75  # sysexits.h's EX_TEMPFAIL: the same command, later, goes on
_EXIT_INTERRUPTED = 130
_FIRST_ENDS, _FIRST_SPEAKS = 3, 10  # seconds that the other processes of a run give the first one
_MOST_BARS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: a terminal may lack a model's characters
    debug = "--debug" in arguments
    try:
        parsed, rest = _parser().parse_known_args([a for a in arguments if a != "--debug"])
        if rest and parsed.command not in ("train", "tokenize", "estimate"):
            raise UserError(f"unknown argument {rest[0]!r}; see hf-gpt {parsed.command} --help")
        parsed.overrides = rest
        return parsed.run(parsed) or 0
    except UserError as error:
        return _fail(error, _EXIT_USER_ERROR, debug)
    except RunPreempted as error:
        return _fail(error, _EXIT_PREEMPTED, debug)
    except (RunStopped, HubError) as error:
        return _fail(error, _EXIT_FAILED, debug)
    except BrokenPipeError:  # the reader of our stdout, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_FAILED
    except OSError as error:  # a full disk, a folder that cannot be written
        where = f"{error.filename}: " if error.filename else ""
        return _fail(error if debug else f"{where}{error.strerror or error}", _EXIT_FAILED, debug)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted; nothing more was saved", _EXIT_INTERRUPTED, debug=False)


class _Parser(argparse.ArgumentParser):
    """argparse, with errors in one line, and with the recipe's fields in the help of the commands that take one."""

    lists_recipe_fields = False

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += "; one that begins with - is written --flag=-value"
        raise UserError(f"{message}; see {self.prog} --help")

    def format_help(self) -> str:
        text = super().format_help()
        if self.lists_recipe_fields:
            from .recipe import fields_help

            lines = [f"  --{name} VALUE\n      {help} (default: {default})" for name, default, help in fields_help()]
            text += (
                "\nrecipe fields (null unsets; --model.KEY takes every GPTConfig field):\n" + "\n".join(lines) + "\n"
            )
        return text


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = _Parser(
        prog="hf-gpt",
        description="Train your own GPT and have the whole Hugging Face ecosystem accept it.",
        epilog="MODEL is a model's directory, a run's directory (its best checkpoint) or a Hub id, perhaps with a"
        " branch, tag or commit: someone/my-gpt@step-00000500."
        " --debug shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"hf_gpt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    train = command("train", _train, "train as a recipe says, or go on with such a run")
    tokenize = command("tokenize", _tokenize, "tokenise a recipe's corpus and say what training will see")
    estimate = command("estimate", _estimate, "say what a recipe takes: parameters, operations, memory and time")
    for sub in (train, tokenize, estimate):
        sub.usage = f"{sub.prog} RECIPE.yaml [--section.key VALUE ...]"
        sub.add_argument("recipe", metavar="RECIPE.yaml", help="the run; any field can be changed by a flag")
        sub.lists_recipe_fields = True
    train.add_argument("--from", dest="parent", metavar="RUN@STEP", help="branch off from a step of another run")
    train.epilog = (
        "Exit codes: 0 done; 1 the run could not go on; 2 something asked for cannot work; 75 saved and stopped by"
        " SIGTERM or SIGUSR1, 130 by Ctrl-C: the same command goes on."
    )
    tokenize.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    estimate.usage = f"{estimate.prog} RECIPE.yaml [--device NAME [--devices N]] [--section.key VALUE ...]"
    estimate.epilog = (
        "Memory comes from the run itself, made with tensors without contents; time here from some real steps, about"
        " a minute at most. Nothing is written where the run will be. With --device, time comes from the figures that"
        " the maker publishes for dense bf16, and train.batch_size is that of each device."
    )
    estimate.add_argument("--device", metavar="NAME", help="plan for H100, H200, A100 ... instead of this machine")
    estimate.add_argument("--devices", metavar="N", type=int, default=1, help="so many of them (default: 1)")
    estimate.add_argument(
        "--utilization",
        metavar="U",
        type=float,
        default=0.4,
        help="the part of their peak that is reached, which is an assumption (default: 0.4)",
    )
    estimate.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    replay = command("replay", _replay, "repeat steps of a run and say whether losses and weights match")
    replay.add_argument("run_dir", metavar="RUN", help="the run's directory")
    replay.add_argument("--from", dest="start", type=int, metavar="S", help="a step it kept a checkpoint of, or 0")
    replay.add_argument("--to", dest="stop", type=int, metavar="T", help="last step (default: its newest checkpoint)")

    plot = command("plot", _plot, "write a run's report, or one that compares several, and pictures for papers")
    plot.add_argument(
        "run_dirs", metavar="RUN", nargs="+", help="a run's directory; it may still be going on, or dead"
    )
    plot.add_argument("--output", metavar="DIR", help="where to (default: the run's directory; several: comparison)")
    plot.add_argument("--x", choices=("steps", "tokens", "seconds"), default="steps", help="axis (default: steps)")
    plot.add_argument("--log", action="store_true", help="logarithmic axes for loss and perplexity")

    evaluate = command("evaluate", _evaluate, "loss, perplexity and bits per byte of a model on a text")
    evaluate.add_argument("model", metavar="MODEL")
    text = evaluate.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", metavar="FILE", help="a file, directory or glob (txt, jsonl, parquet, csv)")
    text.add_argument("--dataset", metavar="NAME", help="a Hub dataset id or a local dataset folder")
    evaluate.add_argument("--dataset-config", metavar="C", help="configuration of a dataset that has several")
    evaluate.add_argument("--split", metavar="S", help="split (default: test of a dataset, train of files)")
    evaluate.add_argument("--text-column", metavar="NAME", help="column that holds the text")
    evaluate.add_argument("--stride", metavar="N", type=int, help="how far the window slides (default: its length)")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    generate = command("generate", _generate, "continue a prompt; greedy unless a sampling flag is given")
    generate.add_argument("model", metavar="MODEL")
    generate.add_argument("--prompt", required=True, metavar="TEXT")
    generate.add_argument("--max-new-tokens", type=int, default=50, metavar="N", help="(default: 50)")
    generate.add_argument("--temperature", type=float, metavar="T", help="below 1 is safer, above 1 wilder")
    generate.add_argument("--top-k", type=int, metavar="K", help="sample among the K most likely tokens")
    generate.add_argument("--top-p", type=float, metavar="P", help="sample among the likeliest tokens that make up P")
    generate.add_argument("--seed", type=int, default=123, metavar="S", help="of the random draws (default: 123)")

    explain = command("explain", _explain, "the loss of a text step by step, with each token's probability and rank")
    explain.description = (
        "From logits to loss: each token of a text with its probability, rank, log-probability and loss, the tokens"
        " that were likelier, their sum, mean and perplexity, and the same figure from cross_entropy."
    )
    explain.epilog = _TOKENS_AS_SHOWN
    explain.add_argument("model", metavar="MODEL")
    explain.add_argument("--text", required=True, metavar="TEXT", help="at least two tokens, at most a window")
    explain.add_argument("--top", type=int, default=3, metavar="N", help="likeliest tokens to show (default: 3)")
    explain.add_argument("--html", metavar="FILE", help="write a page with each token coloured by its loss")
    explain.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    decode = command("decode", _decode, "what temperature, top-k and top-p make of the next token's distribution")
    decode.description = (
        "What greedy decoding, temperature, top-k and top-p make of the distribution of the token after a prompt,"
        " and how often each token comes in so many draws."
    )
    decode.epilog = (
        "'-' is a token that is not drawn: top-k or top-p leave it out, greedy decoding takes another, or the model's"
        f" own generation config forbids it. {_TOKENS_AS_SHOWN}"
    )
    decode.add_argument("model", metavar="MODEL")
    decode.add_argument("--prompt", required=True, metavar="TEXT")
    decode.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        default=[0.1, 1.0, 5.0],
        metavar="T",
        help="one or several, 0 is greedy (default: the book's 0.1 1 5)",
    )
    decode.add_argument("--top-k", type=int, metavar="K", help="keep the K most likely tokens")
    decode.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest tokens that make up P")
    decode.add_argument("--draws", type=int, default=1000, metavar="N", help="(default: 1000)")
    decode.add_argument("--seed", type=int, default=123, metavar="S", help="of the draws (default: 123)")
    decode.add_argument("--top", type=int, default=10, metavar="N", help="tokens to show (default: 10)")
    decode.add_argument("--png", metavar="FILE", help=f"draw the bar chart, of at most {_MOST_BARS} tokens")
    decode.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    demo = command("demo", _demo, "a page in the browser: decoding controls, the distribution, text as it is written")
    demo.epilog = (
        "The page is on 127.0.0.1 until Ctrl-C. Of a run it shows several checkpoints side by side."
        " Needs pip install 'hf_gpt[demo]'."
    )
    demo.add_argument("model", metavar="MODEL")
    demo.add_argument("--port", type=int, metavar="N", help="(default: the first free one from 7860)")
    demo.add_argument("--open", action="store_true", help="open it in the browser")
    demo.add_argument("--space", metavar="DIR", help="write a Space into a new or empty directory, and serve nothing")

    convert = command("convert", _convert, "convert models of other kinds into ours, and ours into stock GPT-2")
    convert.formatter_class = argparse.RawDescriptionHelpFormatter
    convert.epilog = _CONVERT_EXAMPLES
    convert.add_argument("source", metavar="SOURCE", help="a model's directory, a Hub id, or the book's .pth file")
    convert.add_argument("dest", metavar="DEST", help="a directory that is not there yet, or an empty one")
    kind = convert.add_mutually_exclusive_group(required=True)
    kind.add_argument("--from", dest="from_", choices=["gpt2", "book", "openai"], help="what SOURCE is")
    kind.add_argument("--to", choices=["gpt2"], help="what DEST becomes; SOURCE is ours")
    convert.add_argument("--tokenizer", metavar="T", help="instead of the source's: as in a recipe, or none")
    convert.add_argument("--heads", type=int, metavar="N", help="attention heads (book: its n_heads)")
    convert.add_argument(
        "--drop-rate", type=float, metavar="R", help="dropout (book: its drop_rate; default: the file's, else 0.1)"
    )

    push = command("push", _push, "publish a model, a checkpoint or a run's best one on the Hub")
    push.formatter_class = argparse.RawDescriptionHelpFormatter
    push.epilog = _PUSH_EXAMPLES
    push.add_argument("model", metavar="MODEL", help="a model's directory or a run's (its best checkpoint)")
    push.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the Hub; made if it is not there")
    push.add_argument("--private", action="store_true", help="make the repository a private one")
    push.add_argument("--revision", metavar="R", default="main", help="branch to commit to (default: main)")
    push.add_argument("--tag", metavar="T", help="a tag for this commit")
    push.add_argument("--message", metavar="M", help="of the commit (default: the step)")
    push.add_argument("--with-training-state", action="store_true", help="so that checkpoint.resume: hub can go on")
    push.add_argument("--as", dest="as_", choices=["gpt2"], help="send the stock GPT-2 form instead of ours")
    push.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


_PUSH_EXAMPLES = """\
examples:
  hf-gpt push runs/quickstart someone/my-gpt
      the run's best checkpoint becomes the model that someone/my-gpt shows
  hf-gpt push runs/quickstart/checkpoints/step-00000500 someone/my-gpt --revision training --tag step-00000500
      one checkpoint, beside it
  hf-gpt push runs/quickstart someone/my-gpt-as-gpt2 --as gpt2
      a GPT2LMHeadModel, which needs neither this package nor remote code

All files go in one commit, which also removes the weights, tokenizer and training state of the model that was there;
other files in the repository stay. The token is the one of `hf auth login` or of HF_TOKEN, the address that of
HF_ENDPOINT.
"""

_TOKENS_AS_SHOWN = (
    "Tokens are shown so that they can be seen: ␣ a space, ⏎ a line break, ⇥ a tab, \\x1b a control character,"
    " <E4 B8> bytes that are a part of a character."
)

_CONVERT_EXAMPLES = """\
examples:
  hf-gpt convert openai-community/gpt2 my-gpt2 --from gpt2
      a GPT-2 from the Hub or a directory: .safetensors or .bin, whole or in shards
  hf-gpt convert model.pth my-gpt --from book --heads 12
      a state dict of the GPT in the book "Build a Large Language Model From Scratch"; its file does not tell n_heads
  hf-gpt convert models/124M my-gpt2 --from openai
      OpenAI's TensorFlow release: hparams.json, encoder.json, vocab.bpe, model.ckpt.* (needs tensorflow-cpu)
  hf-gpt convert runs/quickstart stock-gpt2 --to gpt2
      a model or run of ours as a GPT2LMHeadModel, which needs neither this package nor remote code

Source and result compute the logits of the same tokens, and DEST is written only if they agree.
"""


def _train(arguments: argparse.Namespace) -> None:
    from .recipe import Recipe
    from .training import train

    recipe = Recipe.from_yaml(arguments.recipe, arguments.overrides)
    if recipe.hub.repo_id is not None:
        from huggingface_hub.utils import disable_progress_bars

        from .data.progress import shows_bar
        from .hub.push import give_up_silent_connections

        give_up_silent_connections()
        if not shows_bar():
            disable_progress_bars()
    run = train(recipe, parent=arguments.parent)
    if not run.is_main_process:
        return
    for line in run.summary():
        _say(line)
    program = sys.argv[0] if sys.argv[0].endswith("hf-gpt") else "hf-gpt"  # which may not be on the PATH
    _say(f'try        {program} generate {run.output_dir} --prompt "..." --temperature 0.8 --top-k 40')


def _tokenize(arguments: argparse.Namespace) -> None:
    from .recipe import Recipe
    from .training.setup import prepare_data

    data = prepare_data(Recipe.from_yaml(arguments.recipe, arguments.overrides))
    if arguments.json:
        print(_json(data.facts()))
        return
    for line in data.describe():
        _say(line)


def _estimate(arguments: argparse.Namespace) -> None:
    if arguments.device is None and arguments.devices != 1:
        raise UserError(f"--devices {arguments.devices}: of which? give --device NAME too, such as --device H100")
    if arguments.devices < 1:
        raise UserError(f"--devices {arguments.devices}: must be 1 or more")
    if not 0 < arguments.utilization <= 1:
        raise UserError(f"--utilization {arguments.utilization}: must be above 0 and at most 1, such as 0.4")
    from .estimate import device_named
    from .recipe import Recipe

    if arguments.device is not None:
        device_named(arguments.device)  # before the seconds that the rest takes
    from .training.trial import estimate

    found = estimate(
        Recipe.from_yaml(arguments.recipe, arguments.overrides),
        arguments.device,
        arguments.devices,
        arguments.utilization,
    )
    if arguments.json:
        print(_json(found.to_dict()))
        return
    for line in found.describe():
        _say(line)


def _replay(arguments: argparse.Namespace) -> int:
    from .replay import Compared, replay

    def show(step: int, compared: Sequence[Compared]) -> None:
        wrong = [one for one in compared if not one.matches]
        for one in wrong:
            print(f"step {step}: {one.what} was {one.published}, is {one.repeated}", flush=True)
        if compared and not wrong:
            print(f"step {step}: {', '.join(one.what for one in compared)} match", flush=True)

    steps = replay(arguments.run_dir, arguments.start, arguments.stop, watch=show)
    if not steps:  # not the process that compares
        return 0
    written_down = [compared for compared in steps.values() if compared]
    exact = sum(all(one.matches for one in compared) for compared in written_down)
    print(f"{len(steps)} steps repeated; {exact} of the {len(written_down)} that were written down match")
    return 0 if 0 < exact == len(written_down) else _EXIT_FAILED


def _plot(arguments: argparse.Namespace) -> None:
    from .report.page import plot

    for path in plot(arguments.run_dirs, arguments.output, x=arguments.x, log=arguments.log):
        print(path)


def _evaluate(arguments: argparse.Namespace) -> None:
    from .evaluation import evaluate_corpus

    _quiet()
    result = evaluate_corpus(
        arguments.model,
        source=arguments.text or arguments.dataset,
        config=arguments.dataset_config,
        split=arguments.split or ("train" if arguments.text else "test"),
        text_column=arguments.text_column,
        stride=arguments.stride,
    )
    if arguments.json:
        print(_json(result.to_dict()))
        return
    print(f"loss            {result.loss:.4f} nats per token")
    print(f"perplexity      {result.perplexity:.2f}")
    print(f"bits per byte   {result.bits_per_byte:.4f}")
    _say(
        f"{result.scored_tokens:,} of {result.tokens:,} tokens scored (the first has no context),"
        f" {result.bytes:,} bytes; windows of {result.context_length}, stride {result.stride}"
    )


def _generate(arguments: argparse.Namespace) -> None:
    from .checkpoint import load_model
    from .generation import check_request, generate_text

    sampling = {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}
    check_request(arguments.prompt, arguments.max_new_tokens, **sampling)  # before the seconds that loading takes
    _quiet()
    model, tokenizer = load_model(arguments.model)
    text = generate_text(
        model,
        tokenizer,
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        **sampling,
    )
    print(text)


def _explain(arguments: argparse.Namespace) -> None:
    from .checkpoint import load_model
    from .explain.scores import check_text, explain

    check_text(arguments.text)  # before the seconds that loading takes
    if not 1 <= arguments.top <= 100:
        raise UserError(f"--top {arguments.top}: must be 1 to 100")
    _refuse_unwritable("--html", arguments.html)
    _quiet()
    explanation = explain(*load_model(arguments.model), arguments.text, arguments.top)
    if arguments.html is not None:
        from .explain.page import page
        from .storage import write_text

        write_text(Path(arguments.html), page(explanation, arguments.model))
        _say(f"page       {arguments.html}")
    print(_json(explanation.to_dict()) if arguments.json else explanation.table())


def _decode(arguments: argparse.Namespace) -> None:
    from .checkpoint import load_model
    from .explain.decoding import check_settings, compare, next_token_logits
    from .explain.token_text import show_token
    from .generation import check_prompt

    settings = {
        "temperatures": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "num_draws": arguments.draws,
        "seed": arguments.seed,
    }
    check_prompt(arguments.prompt)
    check_settings(**settings)
    if not 1 <= arguments.top <= 100:
        raise UserError(f"--top {arguments.top}: must be 1 to 100")
    _refuse_unwritable("--png", arguments.png)
    _quiet()
    model, tokenizer = load_model(arguments.model)
    logits = next_token_logits(model, tokenizer, arguments.prompt)
    found = compare(logits, functools.partial(show_token, tokenizer), arguments.prompt, **settings)
    if arguments.png is not None:
        import logging

        from .explain.chart import chart, missing_characters
        from .report.plots import write_png

        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a font without a regular weight will do
        top = min(arguments.top, _MOST_BARS)
        write_png(Path(arguments.png), chart(found, top))
        _say(f"chart      {arguments.png}")
        if missing := missing_characters(found, top):
            _say(f"note       no font of this machine has {missing}: shown by number; Noto Sans CJK has Chinese")
    print(_json(found.to_dict(arguments.top)) if arguments.json else found.table(arguments.top))


def _json(value: Any) -> str:
    """One JSON object; characters stand for themselves where stdout can show all of them."""
    everything = (sys.stdout.encoding or "").lower().startswith("utf")
    return json.dumps(value, ensure_ascii=not everything, allow_nan=False)


def _refuse_unwritable(flag: str, file: str | None) -> None:
    """Before the work, not after it."""
    if file is None:
        return
    if not file or Path(file).is_dir() or not Path(file).parent.is_dir():
        raise UserError(f"{flag} {file!r}: is a folder or lies in none; give a file in a folder that is there")
    if not os.access(Path(file).parent, os.W_OK):
        raise UserError(f"{flag} {file}: nothing can be written there; give a file in another folder")


def _demo(arguments: argparse.Namespace) -> None:
    from .demo import page as demo
    from .demo import space

    if arguments.space is not None and (arguments.port is not None or arguments.open):
        raise UserError("--port and --open go with a page that is served; --space only writes files")
    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise UserError(f"--port {arguments.port}: must be 1 to 65535")
    _quiet()
    if arguments.space is None:
        demo.serve(
            arguments.model,
            lambda url: _say(f"page       {url}   (Ctrl-C ends it)"),
            port=arguments.port,
            open_browser=arguments.open,
        )
        return
    for line in space.write_space(arguments.model, arguments.space):
        _say(line)


def _convert(arguments: argparse.Namespace) -> None:
    for flag, value in (("--heads", arguments.heads), ("--drop-rate", arguments.drop_rate)):
        if value is not None and arguments.from_ != "book":
            raise UserError(f"{flag} goes with --from book; the other sources say it themselves")
    from . import conversion

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
        _say(line)


def _push(arguments: argparse.Namespace) -> None:
    from huggingface_hub.utils import disable_progress_bars, logging

    from .data.progress import shows_bar
    from .hub import push as hub

    hub.give_up_silent_connections()
    if arguments.as_ is not None:
        _quiet()
    if arguments.json or not shows_bar():
        disable_progress_bars()
    logging.set_verbosity_error()  # its warnings hold addresses of uploads, which are signed
    try:
        done = hub.push(
            arguments.model,
            arguments.repo_id,
            private=arguments.private,
            revision=arguments.revision,
            tag=arguments.tag,
            message=arguments.message,
            with_training_state=arguments.with_training_state,
            as_gpt2=arguments.as_ == "gpt2",
        )
    except (HubError, UserError) as error:
        if arguments.json:
            print(_json({"error": str(error), "retry_after": getattr(error, "retry_after", None)}))
        raise
    if arguments.json:
        print(_json(dataclasses.asdict(done)))
        return
    tag = f", tag {done.tag}" if done.tag else ""
    _say(f"{done.url}: commit {done.commit[:8]} on {done.revision}{tag}")


def _quiet() -> None:
    """No progress bars of the libraries around an answer of a second."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _fail(error: Exception | str, code: int, debug: bool) -> int:
    if debug:
        raise error
    # Of several processes the first one speaks for all. What is wrong everywhere ends it too, and with it, through
    # their launcher, the others while they wait here; what is wrong only in this one is told after that.
    rank = int(os.environ.get("RANK", 0)) if os.environ.get("WORLD_SIZE", "1") != "1" else 0
    if rank:
        agreed = code in (_EXIT_PREEMPTED, _EXIT_INTERRUPTED)  # that they stop
        time.sleep(_FIRST_ENDS if agreed else _FIRST_SPEAKS)
        if agreed:
            return code
    _say(f"hf-gpt: process {rank}: {error}" if rank else f"hf-gpt: {error}")
    return code


if __name__ == "__main__":
    sys.exit(main())
