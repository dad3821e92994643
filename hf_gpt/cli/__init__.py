"""The command line: `hf-gpt COMMAND ...`.

Each command is a module here: its arguments (`add_arguments`), one call into the package, and what it prints (`run`).
This file chooses the command and turns errors into one line and an exit code. `--debug` shows the traceback instead.

The result of a command (a text, or with `--json` one JSON object) goes to stdout, everything else to stderr.
The rest of the package is imported inside `run`, so that `--help` is fast and a push in the background loads no torch.
"""

import contextlib
import ctypes
import os
import sys
import time
import traceback
from collections.abc import Sequence
from types import TracebackType
from urllib.parse import urlsplit

from ..errors import HubError, RunPreempted, RunStopped, UserError, without_secrets
from . import batch, convert, decode, demo, estimate, evaluate, explain, generate, plot, push, replay, tokenize, train
from .arguments import Parser
from .output import say, set_up_hub, standard_streams

_COMMANDS = (train, tokenize, estimate, replay, batch, plot, evaluate, generate, explain, decode, demo, convert, push)

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes the run later
EXIT_INTERRUPTED = 130

# What glibc is told (malloc.h, mallopt(3)), in bytes: it returns no less of its heap, asks for no less, and maps only
# larger blocks.
_MALLOC = {"M_TRIM_THRESHOLD": (-1, 2**28), "M_TOP_PAD": (-2, 2**24), "M_MMAP_THRESHOLD": (-3, 2**25)}

# Seconds that the other processes of a run wait for the first one, which prints for all of them.
_FIRST_STOPS, _FIRST_PRINTS = 3, 10
_LONGEST_LINE = 800


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    sys.excepthook = _show_traceback
    _keep_freed_memory()
    with standard_streams():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack characters that a model writes
    debug = "--debug" in arguments
    try:
        return _run([argument for argument in arguments if argument != "--debug"])
    except UserError as error:
        return _fail(error, EXIT_USER_ERROR, debug)
    except RunPreempted as error:
        return _fail(error, EXIT_PREEMPTED, debug)
    except (RunStopped, HubError) as error:
        return _fail(error, EXIT_FAILED, debug)
    except BrokenPipeError:  # the reader of our stdout, such as `head`, has ended
        return EXIT_FAILED
    except OSError as error:  # a full disk, a folder that cannot be written to
        where = f"{error.filename}: " if error.filename else ""
        return _fail(error if debug else f"{where}{error.strerror or error}", EXIT_FAILED, debug)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted; nothing more was saved", EXIT_INTERRUPTED, debug=False)


def _keep_freed_memory() -> None:
    """Where malloc is glibc's, let it keep what a step has freed for the next one.

    Otherwise it returns the memory to the system and faults it in again, which can take an eighth of a small model's
    step. This holds for the whole process, so it is for the command line alone; what the environment says wins.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, another system
        for parameter, value in _MALLOC.values():
            ctypes.CDLL(None).mallopt(parameter, value)


def _run(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    parsed, rest = _parser().parse_known_args(arguments)
    if rest and not parsed.parser.recipe:
        raise UserError(f"unknown argument '{rest[0]}'; see {parsed.parser.prog} --help")
    parsed.overrides = rest
    _refuse_variables()
    set_up_hub(show_bars=not getattr(parsed, "json", False))
    try:
        code = parsed.run(parsed) or 0
        sys.stdout.flush()  # here, where a reader that is gone and a full disk are errors
        return code
    except UserError as error:
        raise error.renamed(parsed.parser.flags()) from error


def _refuse_variables() -> None:
    """Refuse what lets the import of huggingface_hub fail, for those who ask no Hub too."""
    readers = {"HF_ENDPOINT": lambda address: urlsplit(address).port}
    readers |= dict.fromkeys(("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"), int)
    for name, read in readers.items():
        try:
            if os.environ.get(name):
                read(os.environ[name])
        except ValueError:  # its text may be a part of a password
            what = "an address such as https://huggingface.co" if name == "HF_ENDPOINT" else "a number of seconds"
            raise UserError(f"this environment variable is not {what}; mend or unset it", field=name) from None


def _parser() -> Parser:
    from .. import __version__

    parser = Parser(
        prog="hf-gpt",
        description="Train a language model on your own text. Every checkpoint is a Hugging Face model.",
        epilog="MODEL is the directory of a model or of a run (its best checkpoint), or a Hub id, which may name a"
        " branch, tag or commit: someone/my-gpt@step-00000480. With --debug, errors show their traceback.",
    )
    parser.add_argument("--version", action="version", version=f"hf_gpt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        name, summary = command.__name__.rpartition(".")[2], command.HELP
        description = summary[0].upper() + summary[1:] + "."
        sub = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
        sub.set_defaults(run=command.run, parser=sub)
        command.add_arguments(sub)
    return parser


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _fail(error: Exception | str, code: int, debug: bool) -> int:
    if debug:
        raise error
    # Of several processes the first one prints for all. If all of them failed, its end makes the launcher end the
    # others while they wait here. A process that is still there after the wait has failed alone, and prints.
    rank = int(os.environ.get("RANK", 0)) if os.environ.get("WORLD_SIZE", "1") != "1" else 0
    if rank:
        all_stop = code in (EXIT_PREEMPTED, EXIT_INTERRUPTED)
        time.sleep(_FIRST_STOPS if all_stop else _FIRST_PRINTS)
        if all_stop:
            return code
    text = str(error)
    if len(text) > _LONGEST_LINE:  # it quotes what was found, which may be anything
        text = f"{text[: _LONGEST_LINE // 2]} ... {text[-_LONGEST_LINE // 4 :]}"
    say(f"hf-gpt: process {rank}: {text}" if rank else f"hf-gpt: {text}")
    return code
