"""Download a run from the Hub, to resume it on another machine.

A run that was pushed with its training state (push.py) has its recipe, its records and the newest checkpoint on one
branch, and a tag for each checkpoint. `fetch_run` makes a run's folder of them, from which training resumes as usual.
It downloads a checkpoint only if it is newer than those in the folder.
"""

import contextlib
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .. import checkpoint
from ..errors import HubError, UserError
from ..network import hub_requests
from ..storage import read_json, replacing_directory, write_text
from .push import ENVIRONMENT, RECORDS, RECORDS_FOLDER

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_RETRY_AFTER = (5.0, 15.0, 45.0, 120.0)  # seconds


def fetch_run(repo_id: str, branch: str, run_dir: Path) -> Path | None:
    """Download a run from the Hub into `run_dir`: its newest checkpoint, the best one, and its records.

    If the Hub does not answer, it is asked again for some minutes. Locks make sure that only one of several processes
    downloads, and none while another process trains in `run_dir`.

    Returns:
        The newest checkpoint; None if the one in `run_dir` is as new, or the Hub has none.

    Raises:
        UserError: the branch holds no training state, or that of another run than the one in `run_dir`.
        HubError: the Hub was not reached, or refused.
    """
    from filelock import FileLock

    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for pause in (*_RETRY_AFTER, None):
        try:
            with FileLock(folder / ".hub.lock"), checkpoint.run_lock(run_dir), hub_requests(repo_id):
                return _fetch(repo_id, branch, run_dir)
        except HubError as error:
            if not error.is_transient or pause is None:
                raise
            print(f"hub: {error}; asking again in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)


def _fetch(repo_id: str, branch: str, run_dir: Path) -> Path | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(library_name="hf_gpt")
    try:
        commit = api.repo_info(repo_id, revision=branch).sha
    except RevisionNotFoundError:
        return None
    except RepositoryNotFoundError:
        api.whoami()  # a private repository looks missing without a good token, and the run would start over
        return None
    published = set(api.list_repo_files(repo_id, revision=commit))
    if not {checkpoint.MANIFEST, f"{RECORDS_FOLDER}/recipe.yaml"} <= published:
        raise UserError(
            f"checkpoint.resume: hub, but {repo_id} at {branch!r} holds no training state; a run pushes it with"
            " hub.with_training_state: true"
        )

    def download(name: str, revision: str = commit) -> Path:
        return Path(api.hf_hub_download(repo_id, name, revision=revision))

    run_id = read_json(download(ENVIRONMENT)).get("run_id")
    if read_json(run_dir / "environment.json").get("run_id") not in (None, run_id):
        raise UserError(
            f"output_dir: {run_dir} holds another run than {repo_id} at {branch!r}; give another output_dir or"
            " hub.repo_id"
        )
    progress = read_json(download(f"{checkpoint.TRAINING_STATE}/state.json"))["progress"]
    newest, _ = checkpoint.newest_whole(run_dir)
    if newest is not None and checkpoint.step_of(newest) >= progress["step"]:
        return None
    # The process may die between two of these downloads. The newest checkpoint comes last: until it is here, the next
    # attempt downloads everything again.
    if progress.get("best_step") not in (None, progress["step"]):
        best = checkpoint.name_of(progress["best_step"])
        # It is left out if it was never pushed, or without its training state, or if its tag is another run's.
        with contextlib.suppress(RevisionNotFoundError, RemoteEntryNotFoundError):
            tagged = api.repo_info(repo_id, revision=best).sha
            if read_json(download(ENVIRONMENT, tagged)).get("run_id") == run_id:
                _download_checkpoint(api, repo_id, tagged, run_dir / "checkpoints" / best)
    for name in RECORDS:
        if f"{RECORDS_FOLDER}/{name}" in published:
            write_text(run_dir / name, download(f"{RECORDS_FOLDER}/{name}").read_text(encoding="utf-8"))
    return _download_checkpoint(api, repo_id, commit, run_dir / "checkpoints" / checkpoint.name_of(progress["step"]))


def _download_checkpoint(api: "HfApi", repo_id: str, commit: str, final: Path) -> Path:
    """Download a checkpoint without the records of its run, verify it, and put it in its place atomically."""
    with replacing_directory(final) as directory:
        snapshot = api.snapshot_download(repo_id, revision=commit, ignore_patterns=f"{RECORDS_FOLDER}/*")
        left_out = shutil.ignore_patterns(".*", Path(RECORDS_FOLDER).name)
        shutil.copytree(snapshot, directory, ignore=left_out, copy_function=shutil.copyfile, dirs_exist_ok=True)
        checkpoint.verify(directory)
    return final
