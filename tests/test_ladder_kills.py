"""A run that is killed at random moments, while it publishes a ladder of 20 on a Hub that fails now and then, ends
with 20 revisions that have the right weights. Until then no revision ever has other ones."""

import json
import random
import re
import signal
import time

import psutil
import pytest
from forking import ForkServer, recipe_file
from hub_server import Fault, HubServer
from test_processes import free_port

from hf_gpt import checkpoint

LADDER = [2 * number for number in range(1, 21)]


@pytest.fixture(scope="module")
def shared_hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def commands(shared_hub, tmp_path_factory):
    """`hf-gpt` commands whose Hub is ours."""
    environment = shared_hub.environment(tmp_path_factory.mktemp("home"))
    environment |= {"HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_GPT_CACHE": str(tmp_path_factory.mktemp("cache"))}
    pauses = "background.LAST_PAUSES = (0.1,) * 5; background._FIRST_PAUSE = 0.1"
    server = ForkServer(environment, f"from hf_gpt.hub import background; {pauses}")
    yield server
    server.close()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> dict:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(300)))
    return {
        "model": {"context_length": 16, "emb_dim": 16, "n_layers": 1, "n_heads": 2},
        "tokenizer": {"name": "bytes"},
        "data": {"source": str(text)},
        "train": {"max_steps": 40, "global_batch_size": 2, "batch_size": 1, "log_every": 1, "device": "cpu"},
        "evaluation": {"first": 40, "every": 40, "tokens": 64, "prompts": []},
        "checkpoint": {"every": 10, "keep": 1, "milestones": {"every_steps": 2}},
    }


def start(commands: ForkServer, processes: int, *argv) -> list:
    """The processes of one run."""
    if processes == 1:
        return [commands.start("train", *argv)]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared["LOCAL_WORLD_SIZE"] = shared["WORLD_SIZE"]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [commands.start("train", *argv, env={**shared, **rank}) for rank in ranks]


def stumble(hub, draw: random.Random, faults: int) -> None:
    """Some of the next requests go wrong."""
    hub.mend()
    for _ in range(faults):
        path = draw.choice(
            ["/commit/sending", "/commit/", "/tag/", "/branch/", "/refs", "/preupload/", "/cdn/", "/revision/"]
        )
        how = draw.choice([{"status": 503}, {"cut_request_after": 9}, {"cut_response_after": 3}, {"delay": 0.3}])
        hub.fail(Fault(path, times=draw.randint(1, 2), **how))


def weights(hub, repo: str, kind: str) -> dict[str, bytes]:
    """What the revisions of the ladder hold, by name."""
    if ("model", repo) not in hub.repos:
        return {}
    names = [name for name in hub.refs(repo)[kind] if re.fullmatch(r"step\d+", name)]
    return {name: hub.files(repo, name)["model.safetensors"] for name in names}


@pytest.mark.parametrize(
    ("kills", "processes", "faults", "kind"),
    [
        (3, 1, 1, "tags"),
        pytest.param(20, 1, 4, "branches", marks=pytest.mark.slow),
        pytest.param(10, 2, 4, "tags", marks=pytest.mark.slow),
    ],
)
def test_a_ladder_is_whole_after_any_kills(hub, commands, recipe, tmp_path, kills, processes, faults, kind):
    whole = recipe_file({**recipe, "output_dir": str(tmp_path / "whole")}, tmp_path / "whole.json")
    assert [one.wait() for one in start(commands, processes, whole)] == [0] * processes
    saved = {f"step{step}": tmp_path / "whole" / "checkpoints" / checkpoint.name_of(step) for step in LADDER}
    right = {name: (folder / "model.safetensors").read_bytes() for name, folder in saved.items()}
    assert len(set(right.values())) == len(LADDER)

    draw, killed, attempt = random.Random(f"{kills} {processes}"), 0, 0
    while killed < kills:
        repo, run = f"someone/ladder-{processes}-{kills}-{attempt}", tmp_path / f"run-{attempt}"
        file = recipe_file(
            {**recipe, "output_dir": str(run), "hub": {"repo_id": repo, "milestones": kind}}, tmp_path / "recipe.json"
        )
        stumble(hub, draw, faults)
        workers = start(commands, processes, file)
        victims = draw.choice([workers, workers[:1], workers[-1:]])
        # A revision takes about ten requests. A kill before the first hits the training.
        moment = len(hub.requests) + draw.randint(-20, 120)
        time.sleep(draw.uniform(0, 1.5))
        main = psutil.Process(workers[0].pid)
        while len(hub.requests) < moment and main.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.005)
        for victim in victims:
            victim.send(signal.SIGKILL)
        codes = [worker.wait() for worker in workers]
        killed += -signal.SIGKILL in codes
        there = weights(hub, repo, kind)
        assert {name: content == right[name] for name, content in there.items()} == dict.fromkeys(there, True)
        attempt += set(there) == set(right)  # what is whole is begun again
    hub.mend()
    workers = start(commands, processes, file)
    assert [worker.wait() for worker in workers] == [0] * processes, workers[0].printed
    assert weights(hub, repo, kind) == right, workers[0].printed
    assert set(hub.refs(repo)["branches"]) == {"main", "training", *(right if kind == "branches" else ())}
    code, printed = commands.run("push", run, repo, "--milestones", "--check", "--json")
    assert code == 0, printed
    assert json.loads(printed.splitlines()[0])["revisions"] == dict.fromkeys(right)
