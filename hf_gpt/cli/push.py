"""`hf-gpt push MODEL REPO_ID`

Training runs start this command in the background, without importing torch (`hub/background.py`).
"""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from ..errors import HubError, UserError
from ..storage import local_path
from .arguments import Parser
from .output import print_json, say

if TYPE_CHECKING:
    from ..hub.milestones import Ladder

HELP = "publish a model, or the best checkpoint of a run, on the Hub"

_EXAMPLES = """\
examples:
  hf-gpt push runs/quickstart someone/my-gpt
      the run's best checkpoint, on the branch main
  hf-gpt push runs/quickstart/checkpoints/step-00000480 someone/my-gpt --revision training --tag step-00000480
      one checkpoint, on a branch of its own
  hf-gpt push runs/quickstart someone/my-gpt-as-gpt2 --format gpt2
      a GPT2LMHeadModel, which needs neither this package nor remote code
  hf-gpt push runs/ladder someone/my-ladder --milestones
      those milestones of a run that are missing there, each as a tag or a branch, as its recipe says
  hf-gpt push runs/ladder someone/my-ladder --milestones --check
      compare the weights of each with those of the run; nothing is sent

A push is one commit. It replaces the model that was in the repository and leaves other files there alone.
The token is taken from `hf auth login` or HF_TOKEN; HF_ENDPOINT names another Hub.
"""


def add_arguments(parser: Parser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="directory of a model, or of a run (its best checkpoint)")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the Hub, created if it does not exist")
    parser.add_argument("--private", action="store_true", help="if the repository is created, make it private")
    parser.add_argument("--revision", metavar="R", help="branch to commit to (default: main)")
    parser.add_argument("--tag", metavar="T", help="tag for this commit")
    parser.add_argument("--message", metavar="M", help="commit message (default: the step)")
    parser.add_argument(
        "--with-training-state", action="store_true", help="also upload what checkpoint.resume: hub needs"
    )
    parser.add_argument(
        "--format", "--as", dest="as_gpt2", choices=["gpt2"], help="convert the model to a stock GPT-2 first"
    )
    parser.add_argument("--milestones", action="store_true", help="send the milestones of a run that are missing")
    parser.add_argument(
        "--check",
        action="store_true",
        help="with --milestones: send nothing; compare those that are there; exit code 1 if one is not right",
    )
    parser.add_shared("--json")


def run(arguments: argparse.Namespace) -> int | None:
    if arguments.check and not arguments.milestones:
        raise UserError("goes with --milestones", field="check")
    sent: list[dict] = []
    try:
        if arguments.check:
            return _check(arguments)
        if arguments.milestones:
            return _publish_milestones(arguments, sent)
        _push(arguments)
    except (HubError, UserError) as error:
        if arguments.json:
            facts = {name: getattr(error, name, None) for name in ("retry_after", "is_transient")}
            print_json({"error": str(error), **facts, "sent": sent})
        raise


def _push(arguments: argparse.Namespace) -> None:
    from ..hub.push import push

    done = push(
        arguments.model,
        arguments.repo_id,
        private=arguments.private,
        revision=arguments.revision or "main",
        tag=arguments.tag,
        message=arguments.message,
        with_training_state=arguments.with_training_state,
        as_gpt2=arguments.as_gpt2 is not None,
    )
    if arguments.json:
        print_json(dataclasses.asdict(done))
        return
    tag = f", tag {done.tag}" if done.tag else ""
    say(f"{done.url}: commit {done.commit[:8]} on {done.revision}{tag}")


def _publish_milestones(arguments: argparse.Namespace, sent: list[dict]) -> None:
    """`sent` is given what was sent, one after another."""
    for done in _ladder(arguments).publish(private=arguments.private):
        sent.append(dataclasses.asdict(done))
        if not arguments.json:
            say(f"{done.url}: step {done.step}" + (", in place of other weights" if done.is_replaced else ""))
    if arguments.json:
        print_json({"sent": sent})
    elif not sent:
        say(f"{arguments.repo_id}: all milestones are there")


def _check(arguments: argparse.Namespace) -> int:
    found = _ladder(arguments).check()
    wrong = {name: what for name, what in found.items() if what}
    if arguments.json:
        print_json({"revisions": found})
    for name, what in wrong.items():
        say(f"{name}: {what}")
    say(f"{arguments.repo_id}: {len(found) - len(wrong)} of {len(found)} revisions have the weights of the run")
    return int(bool(wrong))


def _ladder(arguments: argparse.Namespace) -> "Ladder":
    from ..hub.milestones import Ladder

    for name in ("revision", "tag", "message", "with_training_state"):
        if getattr(arguments, name):
            raise UserError("is for one checkpoint; milestones are named by the run's recipe", field=name)
    run_dir = local_path(arguments.model, "model")
    return Ladder(run_dir, arguments.repo_id, as_gpt2=arguments.as_gpt2 is not None)
