"""Publish the milestones of a run: each becomes a revision, a tag or a branch with a name of its own.

A revision holds exactly the files of its milestone. They are committed on a branch that nobody else uses; then the tag
or the branch is made at that commit, so that it never shows anything else, and the first branch is deleted.

What is missing is sent in the order of the steps, and that can be repeated at will. After each revision it is written
down what was sent, and its commit (`published.json` in the run's folder). A revision that is still at that commit is
taken for sent. Any other is compared with the weights here, and replaced if they differ.

`Ladder.check` believes no record. It compares the weights of every revision with the run's own by their hashes. The
Hub knows those, so nothing is downloaded.
"""

import contextlib
import functools
import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checkpoint
from ..display import exact_number
from ..errors import UserError
from ..network import hub_requests
from ..recipe import HubRecipe, Recipe, is_branch_name, placeholders
from ..storage import is_there, read_json, write_json
from .push import push

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from ..training.milestones import Milestone

RECORD = "published.json"
_CHECKPOINT_TAG = re.compile(r"step-\d{8,}")  # of background.py


@dataclass(frozen=True)
class Published:
    """A revision that was sent."""

    name: str
    step: int
    commit: str
    url: str
    is_replaced: bool  # it was there with other weights


def revisions(hub: HubRecipe, milestones: Iterable[tuple[int, Sequence[int], Sequence[int]]]) -> dict[str, int]:
    """The step of each revision that milestones become, by its name and in their order.

    Args:
        milestones: the step of each, and the numbers of tokens and of words that were asked for and fall on it. Where
            the name has one of these, a milestone has a name for each of them.

    Raises:
        UserError: a milestone has no value for its name, the name cannot be a branch's, or another has it.
    """
    used, found = placeholders(hub.milestone_name), {}

    def refuse(why: str) -> None:
        raise UserError(why, field="hub.milestone_name", value=f"'{hub.milestone_name}'")

    for step, *asked in milestones:
        values: list[dict[str, Any]] = [{"step": step}]
        for kind, counts in zip(("tokens", "words"), asked):
            if used & {kind, f"{kind}_short"}:
                values = [{**one, kind: n, f"{kind}_short": exact_number(n)} for one in values for n in counts]
                if not values:
                    refuse(f"the milestone of step {step} has none: it is not one of checkpoint.milestones.{kind}")
        for name in dict.fromkeys(hub.milestone_name.format(**one) for one in values):
            subject, used_names = f"the milestone of step {step} would be '{name}'", (name, _branch_to_send(name))
            if name in found:
                refuse(f"{subject}, and so would that of step {found[name]}")
            if _CHECKPOINT_TAG.fullmatch(name) or any(
                _collide(one, other) for one in used_names for other in ("main", hub.branch)
            ):
                refuse(f"{subject}, which is, or cannot stand beside, a name of other checkpoints there")
            if not all(map(is_branch_name, used_names)):
                refuse(f"{subject}, which no branch or tag can be called")
            found[name] = step
    return found


def _collide(one: str, other: str) -> bool:
    """Whether git has no place for both: they are the same, or one would be a folder with the other in it."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _branch_to_send(name: str) -> str:
    """The branch on which a revision is committed."""
    return f"sending-{name}"


class Ladder:
    """The milestones in the folder of a run, and a repository where each of them is to be a revision.

    Args:
        run: the run's folder.
        repo_id: `OWNER/NAME`.
        hub: how they are published; by default as the run's recipe says (with `milestones: none`: as tags).
        as_gpt2: as a stock GPT-2, also where the recipe does not say so.

    Raises:
        UserError: there is no run.
    """

    def __init__(self, run: str | Path, repo_id: str, hub: HubRecipe | None = None, as_gpt2: bool = False):
        self.run_dir, self._repo_id = Path(run), repo_id
        if hub is None:
            recipe = self.run_dir / "recipe.yaml"
            if not is_there(recipe):
                raise UserError(f"{run}: is no run: it has no recipe.yaml, which says what its milestones are called")
            hub = Recipe.from_yaml(recipe).hub
        self._hub, self._kind = hub, "branches" if hub.milestones == "branches" else "tags"
        self._as_gpt2 = as_gpt2 or hub.format == "gpt2"

    def refuse_names(self, milestones: "Mapping[int, Milestone]") -> None:
        """Refuse names that the milestones of a run, by step, and those that are here cannot have.

        Those ahead of where the run is resumed do not count: it makes them again, or removes them.
        """
        asked = {step: (step, one.tokens, one.words) for step, one in milestones.items()}
        goes_on = max(map(checkpoint.step_of, checkpoint.checkpoints(self.run_dir)), default=-1)
        here = {step: one for step, one in self._asked().items() if step <= goes_on}
        revisions(self._hub, (here | asked).values())

    def unsent(self) -> list[str]:
        """The revisions that were not sent as they are now, by the record; the Hub is not asked."""
        record, found = self._read_record(), []
        for name, folder in self._folders().items() if checkpoint.milestones(self.run_dir) else ():
            with contextlib.suppress(checkpoint.DamagedCheckpoint):
                sent = {**record.get(name, {}), "commit": None}
                found += [name] * (sent != {**self._entry(folder), "commit": None})
        return found

    def publish(self, *, private: bool = False) -> Iterator[Published]:
        """Send what is missing or has other weights, in the order of the steps; gives each revision that was sent.

        Raises:
            UserError: a name cannot be, or, once all others are sent, a milestone is damaged.
            HubError: the Hub was not reached, or refused.
        """
        folders, record, damaged = self._folders(), self._read_record(), []
        there, branches = self._look(folders)
        for name, folder in folders.items():
            published, commit = None, there.get(name)
            try:
                entry = self._entry(folder)
                is_known = commit is not None and record.get(name) == {**entry, "commit": commit}
                if not is_known and not (commit is not None and self._is_right(name, folder, commit)):
                    published = self._send(name, folder, private or self._hub.private, is_there=commit is not None)
                    commit = published.commit
            except checkpoint.DamagedCheckpoint as error:
                damaged.append(error)
                continue
            if published is not None or _branch_to_send(name) in branches:
                self._delete_branch(_branch_to_send(name))
            if not is_known:
                record[name] = {**entry, "commit": commit}
                self._write_record(record)
            if published is not None:
                yield published
        if damaged:
            raise damaged[0]

    def check(self) -> dict[str, str | None]:
        """What is wrong with each revision, None where nothing is: the weights here and there, by their hashes.

        Raises:
            HubError: the Hub was not reached, or refused.
        """
        folders, expected, listed = self._folders(), {}, []
        there, _ = self._look(folders)
        wrong: dict[str, str | None] = dict.fromkeys(folders)
        for name, folder in folders.items():
            try:
                listed.append(self._entry(folder)["weights"])
                expected[name] = self._hashes(folder)
            except checkpoint.DamagedCheckpoint as error:
                wrong[name] = f"cannot be compared: {error}"
        for name, entry in self._read_record().items():
            is_ours = name in there and entry.get("commit") == there[name]
            if name not in folders and is_ours and entry.get("weights") not in listed:
                wrong[name] = "is of a milestone that is not here any more, and cannot be compared"
        for name, hashes in expected.items():
            if name not in there:
                wrong[name] = f"is not among the {self._kind} of {self._repo_id}"
            elif not _agree(found := self._there(name, there[name], hashes), hashes):
                other = next((other for other, theirs in expected.items() if _agree(found, theirs)), None)
                wrong[name] = "has other weights than the run" + (f": those of {other}" if other else "")
        return wrong

    # Here

    def _asked(self) -> dict[int, tuple[int, Sequence[int], Sequence[int]]]:
        """The milestones that are here, as `revisions` takes them, by step."""
        found = {}
        for path in checkpoint.milestones(self.run_dir):
            step, asked = checkpoint.step_of(path), checkpoint.milestone(path)["asked"]
            found[step] = (step, asked["tokens"], asked["words"])
        return found

    def _folders(self) -> dict[str, Path]:
        """The checkpoint of each revision."""
        names = revisions(self._hub, self._asked().values())
        if not names:
            raise UserError(f"{self.run_dir}: has no milestones; checkpoint.milestones in its recipe asks for them")
        return {name: self.run_dir / "checkpoints" / checkpoint.name_of(step) for name, step in names.items()}

    def _entry(self, folder: Path) -> dict[str, Any]:
        """What is written down of a revision, beside its commit; by the manifest, without reading the weights."""
        weights = checkpoint.hashes_of_weights(folder)
        return {"among": self._kind, "format": "gpt2" if self._as_gpt2 else "hf_gpt", "weights": weights}

    def _hashes(self, folder: Path) -> "_Hashes":
        """Of the weights as they are published; for a stock GPT-2 they are converted afresh."""
        checkpoint.verify(folder, {path.name for path in checkpoint.weight_files(folder)})
        with tempfile.TemporaryDirectory() as temporary:
            if self._as_gpt2:
                from ..conversion import to_gpt2

                to_gpt2(str(folder), f"{temporary}/gpt2")
                folder = Path(temporary, "gpt2")
            return {path.name: _hashes_of(path) for path in checkpoint.weight_files(folder)}

    def _read_record(self) -> dict[str, Any]:
        """What was sent to this repository, by revision. Without it, or if it is damaged, the Hub is asked."""
        with contextlib.suppress(UserError):
            found = read_json(self.run_dir / RECORD).get(self._repo_id)
            if isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values()):
                return found
        return {}

    def _write_record(self, record: Mapping[str, Any]) -> None:
        others = {}
        with contextlib.suppress(UserError):
            others = read_json(self.run_dir / RECORD)
        write_json(self.run_dir / RECORD, {**others, self._repo_id: record})

    # On the Hub

    def _look(self, wanted: Iterable[str]) -> tuple[dict[str, str], set[str]]:
        """The commits of the tags or of the branches there, by name; and the names of all branches.

        Raises:
            UserError: a name that is `wanted` for a tag is a branch there, or the other way round.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        with hub_requests(self._repo_id):
            try:
                refs = self._api.list_repo_refs(self._repo_id)
            except RepositoryNotFoundError:
                self._api.whoami()  # a private repository looks missing without a good token
                return {}, set()
        named = {kind: {ref.name: ref.target_commit for ref in getattr(refs, kind)} for kind in ("branches", "tags")}
        other = "branches" if self._kind == "tags" else "tags"
        if taken := [name for name in wanted if name in named[other]]:
            what = f"'{taken[0]}' is one of the {other} of {self._repo_id}; remove it there, or change its name here"
            raise UserError(what, field="hub.milestones", value=self._kind)
        return named[self._kind], {*named["branches"]}

    def _there(self, name: str, commit: str, names: Iterable[str]) -> dict[str, str]:
        """The hash that the Hub knows of each of some files, where they are there."""
        with hub_requests(f"{self._repo_id}, {name}"):
            infos = self._api.get_paths_info(self._repo_id, [*names], revision=commit)
        return {info.path: info.lfs.sha256 if info.lfs else info.blob_id for info in infos if hasattr(info, "lfs")}

    def _is_right(self, name: str, folder: Path, commit: str) -> bool:
        """Whether the commit has the weights of this checkpoint."""
        hashes = self._hashes(folder)
        return _agree(self._there(name, commit, hashes), hashes)

    def _send(self, name: str, folder: Path, private: bool, is_there: bool) -> Published:
        """Commit a revision, and let its name stand for the commit."""
        branch = _branch_to_send(name)
        done = push(folder, self._repo_id, private=private, revision=branch, as_gpt2=self._as_gpt2, named=name)
        api, repo_id = self._api, self._repo_id
        with hub_requests(f"{repo_id}, {name}"):
            if self._kind == "tags":
                if is_there:
                    api.delete_tag(repo_id, tag=name)
                api.create_tag(repo_id, tag=name, revision=done.commit)
            else:
                if is_there:
                    api.delete_branch(repo_id, branch=name)
                api.create_branch(repo_id, branch=name, revision=done.commit)
        url = done.url.replace(f"/tree/{branch}", f"/tree/{name}")
        return Published(name, checkpoint.step_of(folder), done.commit, url, is_replaced=is_there)

    def _delete_branch(self, name: str) -> None:
        with hub_requests(self._repo_id):
            self._api.delete_branch(self._repo_id, branch=name)

    @functools.cached_property
    def _api(self) -> "HfApi":
        from huggingface_hub import HfApi

        return HfApi(library_name="hf_gpt")


_Hashes = dict[str, frozenset[str]]
"""By a file's name: its SHA-256, by which the Hub knows a large file, and git's hash, by which a small one."""


def _hashes_of(path: Path) -> frozenset[str]:
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            blob.update(block)
    return frozenset({sha256.hexdigest(), blob.hexdigest()})


def _agree(there: Mapping[str, str], hashes: _Hashes) -> bool:
    """Whether all these files are there, as they are here."""
    return all(there.get(name) in ones for name, ones in hashes.items())
