"""Whatever a disk or another program has done to the files of a run: it continues bit for bit, or nothing changes.

Each file of a small real run is changed in turn, and the run resumed. Either its weights are those of the run that was
left alone, or one line says what is wrong and every byte is where it was.
"""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import hf_gpt
from hf_gpt import checkpoint
from hf_gpt.errors import UserError
from hf_gpt.recipe import Recipe
from hf_gpt.report.records import read_run
from hf_gpt.run import prepare_run
from hf_gpt.storage import write_json
from hf_gpt.training.loop import run
from hf_gpt.training.run_log import RunLog
from hf_gpt.training.terminal import Terminal

LAST, LONGER = "checkpoints/step-00000004", 6
DEEP = 100_000


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict:
    """A run with checkpoints at 2 and 4, not to be written to, and what it would be after 6 steps."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "text.txt").write_text("".join(f"Line {i}: the quick brown fox.\n" for i in range(60)))
    recipe = {
        "output_dir": str(folder / "run"),
        "model": {"context_length": 16, "emb_dim": 16, "n_layers": 1, "n_heads": 2, "drop_rate": 0.1},
        "tokenizer": {"name": "bytes"},
        "data": {"source": str(folder / "text.txt")},
        "train": {"max_steps": 4, "batch_size": 2, "device": "cpu", "log_every": 1, "compile": False},
        "schedule": {"name": "constant"},
        "evaluation": {"every": 2, "tokens": 32, "prompts": ["Line"], "sample_tokens": 2},
        "checkpoint": {"every": 2, "keep": None},
    }
    hf_gpt.train(recipe)
    whole = hf_gpt.train(longer(recipe, folder / "whole"))
    return {"recipe": recipe, "weights": weights_of(whole.output_dir)}


def longer(recipe: dict, run_dir: Path) -> dict:
    return {**recipe, "output_dir": str(run_dir), "train": {**recipe["train"], "max_steps": LONGER}}


def weights_of(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / checkpoint.name_of(LONGER) / "model.safetensors").read_bytes()


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file, by its content; a link by where it points to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


def resumes_or_refuses(base: dict, run_dir: Path) -> str | None:
    """Resume the run in `run_dir`. The line that refuses it, or None if it came to the right end."""
    before = tree(run_dir)
    said = None
    try:
        job = prepare_run(Recipe.from_dict(longer(base["recipe"], run_dir)))
        run(job, [RunLog(run_dir), Terminal()])
    except UserError as error:
        said = str(error)
    if said is not None:
        assert tree(run_dir) == before, f"{said}: and yet something was written"
        assert len(said.splitlines()) == 1
        return said
    assert weights_of(run_dir) == base["weights"]
    after = tree(run_dir)
    kept = {content for content in after.values() if isinstance(content, bytes)}
    for name, content in before.items():
        if name.startswith("checkpoints/step-") and isinstance(content, bytes):
            assert content in kept, f"{name} was deleted"
    return None


# What happens to a file


def replaced(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in random.Random(path.name).sample(range(len(content)), min(3, len(content))):
        content[at] ^= 1 << at % 8
    path.write_bytes(content)


def zeros_inside(path: Path) -> None:
    """As a power cut leaves a file whose blocks were not written."""
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + bytes(third) + content[2 * third :])


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_failing_disk(path: Path) -> None:
    """Reading /proc/self/mem from its beginning is an input/output error, also for the superuser."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/not/mounted")


CONTENT = {
    "empty": replaced(b""),
    "cut": cut,
    "flipped": flip,
    "zeros": zeros_inside,
    "null": replaced(b"null"),
    "list": replaced(b"[1, 2]\n"),
    "string": replaced(b'"text"\n'),
    "huge number": replaced(b'{"step": ' + b"9" * 400 + b"}\n"),
    "not a number": replaced(b'{"step": NaN, "run_id": Infinity, "progress": -Infinity}\n'),
    "other types": replaced(b'{"step": "4", "files": 3, "run_id": [], "versions": 1, "seed": {"a": 1}}\n'),
    "deep": replaced(b'{"step": ' + b"[" * DEEP + b"]" * DEEP + b"}\n"),
    "not UTF-8": replaced(b'{"step": 1, "text": "\xff\xfe"}\n'),
    "binary": replaced(bytes(range(256)) * 8),
    "gone": lambda path: path.unlink(),
}
UNREADABLE = {
    "directory": a_directory,
    "circle": a_circle,
    "pipe": a_pipe,
    "failing disk": a_failing_disk,
    "link to nowhere": nowhere,
}
RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "checkpoints/latest")
OF_A_CHECKPOINT = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "training_state/manifest.json",
    "training_state/state.json",
    "training_state/optimizer.safetensors",
    "training_state/random.safetensors",
)


@pytest.fixture
def run_dir(base, tmp_path) -> Path:
    return shutil.copytree(base["recipe"]["output_dir"], tmp_path / "run")


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_any_content(base, tmp_path, name):
    for kind, change in CONTENT.items():
        run_dir = shutil.copytree(base["recipe"]["output_dir"], tmp_path / kind)
        change(run_dir / name)
        said = resumes_or_refuses(base, run_dir)
        if name.endswith(".jsonl"):
            assert said is None, kind
            read_run(run_dir)
        elif kind != "gone" and name in ("environment.json", "checkpoints/latest"):
            assert name in (said or "no line"), kind


@pytest.mark.parametrize("name", [*RECORDS, "events.jsonl", f"{LAST}/config.json", f"{LAST}/{checkpoint.MANIFEST}"])
def test_what_cannot_be_read_is_refused_by_name_and_left_alone(base, tmp_path, name):
    (folder := tmp_path / "whole").mkdir()
    shutil.copytree(base["recipe"]["output_dir"], folder, dirs_exist_ok=True)
    (folder / "events.jsonl").touch()
    for kind, change in UNREADABLE.items():
        run_dir = shutil.copytree(folder, tmp_path / kind)
        change(run_dir / name)
        said = resumes_or_refuses(base, run_dir)
        assert f"{run_dir / name}: " in (said or "it went on"), kind


def test_a_folder_that_cannot_be_looked_into_holds_no_run_that_starts_over(base, run_dir):
    for name in ("checkpoints", LAST, f"{LAST}/training_state"):
        for change in (a_circle, nowhere, replaced(b"a file")):
            folder = run_dir / name
            kept = folder.rename(run_dir / "kept")
            folder.touch()
            change(folder)
            assert str(folder) in (resumes_or_refuses(base, run_dir) or "it went on")
            folder.unlink()
            kept.rename(folder)


@pytest.mark.parametrize("name", OF_A_CHECKPOINT)
def test_a_damaged_checkpoint_is_kept_and_the_one_before_it_continues(base, tmp_path, name):
    kinds = CONTENT if name.endswith("manifest.json") else ("cut", "flipped", "gone")
    for kind in kinds:
        run_dir = shutil.copytree(base["recipe"]["output_dir"], tmp_path / kind)
        CONTENT[kind](run_dir / LAST / name)
        assert resumes_or_refuses(base, run_dir) is None
        assert (run_dir / "checkpoints" / "damaged-step-00000004").is_dir()


def described_again(run_dir: Path) -> None:
    """The manifest of somebody who changed a file and knew of it."""
    write_json(run_dir / LAST / checkpoint.MANIFEST, checkpoint._describe(run_dir / LAST))


STATE = ("model.safetensors", *(f"training_state/{name}" for name in ("state.json", "optimizer.safetensors")))


@pytest.mark.parametrize("name", [*STATE, "training_state/random.safetensors"])
def test_a_training_state_of_any_content_under_a_manifest_that_says_so(base, tmp_path, name):
    for kind, change in CONTENT.items():
        if kind in ("flipped", "zeros") and name.endswith(".safetensors"):
            continue  # other numbers: nobody can tell
        run_dir = shutil.copytree(base["recipe"]["output_dir"], tmp_path / kind)
        change(run_dir / LAST / name)
        (run_dir / LAST / checkpoint.MANIFEST).unlink()
        described_again(run_dir)
        assert str(run_dir / LAST) in (resumes_or_refuses(base, run_dir) or "it went on"), kind


PROGRESS = [("step", value) for value in (2, "4", 4.5, True, None, -4, 10**400)]
PROGRESS += [(name, value) for name in ("tokens", "seconds", "skipped", "best_step") for value in ("1", [], {}, -1)]
PROGRESS += [("seconds", float("nan")), ("tokens", 10**400), ("best_validation_loss", "low"), ("unknown", 1)]


def test_a_position_of_other_types_is_no_position(base, run_dir):
    path = run_dir / LAST / "training_state" / "state.json"
    state = json.loads(path.read_text())
    for name, value in PROGRESS:
        changed = copy.deepcopy(state)
        changed["progress"][name] = value
        path.write_text(json.dumps(changed))
        (run_dir / LAST / checkpoint.MANIFEST).unlink()
        described_again(run_dir)
        assert str(run_dir / LAST) in (resumes_or_refuses(base, run_dir) or f"it went on with {name} {value}")


def test_files_of_two_steps_are_not_mixed(base, tmp_path):
    for name in STATE:
        run_dir = shutil.copytree(base["recipe"]["output_dir"], tmp_path / Path(name).stem)
        shutil.copy(run_dir / "checkpoints" / "step-00000002" / name, run_dir / LAST / name)
        assert resumes_or_refuses(base, run_dir) is None


def test_tensors_of_other_shapes_are_refused(base, tmp_path):
    for name in ("model.safetensors", "training_state/optimizer.safetensors"):
        run_dir = shutil.copytree(base["recipe"]["output_dir"], tmp_path / Path(name).stem)
        tensors = load_file(run_dir / LAST / name)
        largest = max(tensors, key=lambda key: tensors[key].numel())
        save_file({**tensors, largest: tensors[largest][:3].clone()}, run_dir / LAST / name, {"format": "pt"})
        (run_dir / LAST / checkpoint.MANIFEST).unlink()
        described_again(run_dir)
        assert str(run_dir / LAST) in (resumes_or_refuses(base, run_dir) or "it went on")
