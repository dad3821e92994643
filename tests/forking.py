"""Commands in processes of their own, without the seconds that importing takes.

A server process imports what the commands need, once, and forks for each of them: what runs is a real process with a
real exit code, that real signals reach and kill.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Reads requests, one JSON object a line. Forks a child for {"argv", "out", "env", "die_at"} and answers its pid;
# answers {"wait"} with how the child ended. `die_at` kills the child at its n-th file-system event, by SIGKILL.
_SERVER = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
import hf_gpt.cli, hf_gpt.run, hf_gpt.text_evaluation, hf_gpt.data.tokenizer
import datasets, matplotlib.backends.backend_agg, tiktoken, transformers.generation.utils, pydoc_data.topics
from transformers import PreTrainedTokenizerFast

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")

def die_at(event_number, within):
    left = [event_number]
    def hook(event, args):
        if event in FILE_EVENTS and any(within in str(a) for a in args[:2]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

# As in a terminal, whatever started the tests: what runs in the background may ignore these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# setup
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        _, status = os.waitpid(request["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        try:
            out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1), os.dup2(out, 2)
            os.environ.update(request["env"])
            if request["die_at"]:
                die_at(*request["die_at"])
            code = hf_gpt.cli.main(request["argv"])
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(99)
    print(pid, flush=True)
"""


class Forked:
    """One command; `wait()` gives its exit code (negative: the signal that ended it)."""

    def __init__(self, server: "ForkServer", pid: int, out: Path):
        self.pid, self._server, self._out = pid, server, out

    def wait(self) -> int:
        return int(self._server.ask({"wait": self.pid}))

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def printed(self) -> str:
        return self._out.read_text() if self._out.exists() else ""  # until it has begun

    def wait_until(self, condition, timeout: float = 300) -> None:
        """Until `condition()` is true; fails if it does not come true in time."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.01)


class ForkServer:
    """Starts `hf-gpt` commands; one server for all tests of a process.

    `environment`: what must be set before anything is imported, such as the address of the Hub; `setup`: Python code
    that sets what a person cannot.
    """

    def __init__(self, environment: dict[str, str] | None = None, setup: str = "") -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER.replace("# setup", setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self._process.stdout.readline().strip() == "ready"

    def ask(self, request: dict) -> str:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def start(
        self, *argv: str | Path, env: dict[str, str] | None = None, die_at: tuple[int, str] | None = None
    ) -> Forked:
        """Start a command; `die_at=(n, path)` kills it at the n-th file-system event below a path."""
        self._count += 1
        out = Path(self._folder.name, f"{self._count}.txt")
        request = {"argv": [str(a) for a in argv], "out": str(out), "env": env or {}, "die_at": die_at}
        return Forked(self, int(self.ask(request)), out)

    def run(self, *argv: str | Path, **options) -> tuple[int, str]:
        """Run a command to its end: its exit code, and what it printed."""
        command = self.start(*argv, **options)
        code = command.wait()
        return code, command.printed

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()


def recipe_file(recipe: dict, path: Path) -> Path:
    """A recipe as the file that the command line takes."""
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path
