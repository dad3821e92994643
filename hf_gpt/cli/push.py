"""`hf-gpt push MODEL REPO_ID`

Training runs start this command in the background, without importing torch (`hub/background.py`).
"""

import argparse
import dataclasses

from ..errors import HubError, UserError
from .arguments import Parser
from .output import print_json, say

HELP = "publish a model, or the best checkpoint of a run, on the Hub"

_EXAMPLES = """\
examples:
  hf-gpt push runs/quickstart someone/my-gpt
      the run's best checkpoint, on the branch main
  hf-gpt push runs/quickstart/checkpoints/step-00000480 someone/my-gpt --revision training --tag step-00000480
      one checkpoint, on a branch of its own
  hf-gpt push runs/quickstart someone/my-gpt-as-gpt2 --as gpt2
      a GPT2LMHeadModel, which needs neither this package nor remote code

A push is one commit. It replaces the model that was in the repository and leaves other files there alone.
The token is taken from `hf auth login` or HF_TOKEN; HF_ENDPOINT names another Hub.
"""


def add_arguments(parser: Parser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="directory of a model, or of a run (its best checkpoint)")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the Hub, created if it does not exist")
    parser.add_argument("--private", action="store_true", help="if the repository is created, make it private")
    parser.add_argument("--revision", metavar="R", default="main", help="branch to commit to (default: main)")
    parser.add_argument("--tag", metavar="T", help="tag for this commit")
    parser.add_argument("--message", metavar="M", help="commit message (default: the step)")
    parser.add_argument(
        "--with-training-state", action="store_true", help="also upload what checkpoint.resume: hub needs"
    )
    parser.add_argument("--as", dest="as_gpt2", choices=["gpt2"], help="convert the model to a stock GPT-2 first")
    parser.add_shared("--json")


def run(arguments: argparse.Namespace) -> None:
    from ..hub.push import push

    try:
        done = push(
            arguments.model,
            arguments.repo_id,
            private=arguments.private,
            revision=arguments.revision,
            tag=arguments.tag,
            message=arguments.message,
            with_training_state=arguments.with_training_state,
            as_gpt2=arguments.as_gpt2 is not None,
        )
    except (HubError, UserError) as error:
        if arguments.json:
            facts = {name: getattr(error, name, None) for name in ("retry_after", "is_transient")}
            print_json({"error": str(error), **facts})
        raise
    if arguments.json:
        print_json(dataclasses.asdict(done))
        return
    tag = f", tag {done.tag}" if done.tag else ""
    say(f"{done.url}: commit {done.commit[:8]} on {done.revision}{tag}")
