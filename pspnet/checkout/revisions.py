"""`pspnet data diff`: compare the prepared set recorded in a git revision's dvc.lock with the current one."""

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo
from rich.markup import escape
from rich.table import Table

from pspnet.checkout.difference import Difference, compare
from pspnet.config.reading import parse_value
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.worktree import git

HERE = Path()
LOCK = "dvc.lock"
SHORT = 7  # characters of a commit hash to show


def diff(rev: str, prepared: Path, limit: int, as_json: bool) -> None:
    now = PreparedDataset.open(prepared)
    commit = _commit(rev)
    with tempfile.TemporaryDirectory() as folder:
        _lay_out(_recorded(rev, commit, prepared), Path(folder), f"{prepared} of {rev}")
        try:
            before = PreparedDataset.open(Path(folder))
        except UserError as error:  # written by a different version of the package
            named = [replace(problem, where=f"{prepared} of {rev}", fix="") for problem in error.problems]
            raise UserError(named) from None
        with terminal.progress("diff") as tick:
            difference = compare(before, now, tick)
    if as_json:
        print(json.dumps({"revision": commit} | asdict(difference), indent=2, ensure_ascii=False))  # noqa: T201
        return
    _show(difference, f"{prepared} against {rev} ({commit[:SHORT]})", limit)


def _commit(rev: str) -> str:
    if git(HERE, "rev-parse", "--git-dir").returncode:
        raise UserError(Problem(str(Path.cwd()), "is not a git checkout", "the folder of your checkout"))
    found = git(HERE, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
    if found.returncode:
        raise UserError(Problem(f"'{rev}'", "is not a revision in this repository", "a commit, branch or tag"))
    return found.stdout.strip()


def _recorded(rev: str, commit: str, prepared: Path) -> str:
    """DVC's digest of the prepared set, as recorded in dvc.lock at that commit."""
    shown = git(HERE, "show", f"{commit}:./{LOCK}")
    lock = parse_value(shown.stdout, f"{LOCK} of {rev}") if shown.returncode == 0 else None
    stages = lock.get("stages", {}).values() if isinstance(lock, dict) else []
    for out in (out for stage in stages for out in stage.get("outs", [])):
        if out["path"] == prepared.as_posix():
            return str(out["md5"])
    found = f"does not contain {prepared}" if lock else "is missing"
    fix = f"`git log {LOCK}` shows the revisions that have one. Commit it after a run: git add {LOCK}"
    raise UserError(Problem(f"{LOCK} of {rev}", found, "the record of a run", fix))


def _lay_out(digest: str, folder: Path, name: str) -> None:
    """Link the set's files from DVC's cache into the folder, after fetching missing files from the remote."""
    logging.getLogger("dvc").setLevel(logging.ERROR)  # otherwise DVC lists every file that it cannot fetch
    try:
        with Repo(_wait_for_lock=True) as repo:
            [listing] = _cached(repo, [digest], name)
            files = json.loads(listing.read_text(encoding="utf-8"))
            for file, path in zip(files, _cached(repo, [file["md5"] for file in files], name), strict=True):
                link = folder / file["relpath"]
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
    except DvcException as error:
        raise UserError(Problem(name, f"cannot be fetched by DVC ({' '.join(str(error).split())})")) from None


def _cached(repo: Any, digests: Sequence[str], name: str) -> list[Path]:
    paths = {digest: Path(repo.cache.local.oid_to_path(digest)) for digest in digests}
    if missing := [digest for digest, path in paths.items() if not path.exists()]:
        if repo.config["core"].get("remote"):
            count = f"{len(missing):,} of {len(digests):,}"
            terminal.err.print(f"{name}: {count} files from DVC's remote", markup=False)
            repo.cloud.pull([HashInfo("md5", digest) for digest in missing])
        if absent := [digest for digest in missing if not paths[digest].exists()]:
            found = f"lacks {len(absent):,} of its files in this checkout's DVC cache and in its remote"
            raise UserError(Problem(name, found, fix="Run `dvc push` where the set was created."))
    return [paths[digest] for digest in digests]


def _show(difference: Difference, title: str, limit: int) -> None:
    listed = _listed(difference)
    if not any(listed.values()):
        terminal.out.print(f"{title}: nothing has changed.", markup=False)
        return
    table = _table("", "before", "added", "removed", "changed", "now", title=escape(title))
    kinds = {
        "images": difference.images,
        "masks": difference.masks,
        "quarantined": difference.quarantined,
        "duplicates": difference.duplicates,
    }
    for name, changes in kinds.items():
        lengths = (len(changes.added), len(changes.removed), len(changes.changed))
        table.add_row(name, *(f"{count:,}" for count in (changes.before, *lengths, changes.now)))
    terminal.out.print(table)
    for kind, names in listed.items():
        if names:
            more = [f"and {len(names) - limit:,} more"] if len(names) > limit else []
            terminal.out.print(f"{kind} ({len(names):,}): {', '.join([*names[:limit], *more])}", markup=False)
    changed = [row for row in difference.labels if row.before != row.now or row.gained or row.lost]
    if changed:
        terminal.out.print()
        table = _table("class", "pixels before", "now", "difference", "gained", "lost")
        for row in changed:
            table.add_row(
                escape(row.name), f"{row.before:,}", f"{row.now:,}", f"{row.now - row.before:+,}",
                f"{row.gained:,}", f"{row.lost:,}",
            )  # fmt: skip
        terminal.out.print(table)
        terminal.out.print(
            "gained and lost count only changed masks; the difference also includes added and removed masks"
        )


def _table(first: str, *others: str, title: str | None = None) -> Table:
    table = Table(first, title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _listed(difference: Difference) -> dict[str, list[str]]:
    images, masks, quarantined, duplicates = (
        difference.images, difference.masks, difference.quarantined, difference.duplicates,
    )  # fmt: skip
    return {
        "images added": images.added,
        "images removed": images.removed,
        "images changed": images.changed,
        "moved to another split": [f"{move.id} ({move.before} -> {move.now})" for move in difference.moved],
        "masks added": masks.added,
        "masks removed": masks.removed,
        "masks changed": masks.changed,
        "masks recoded with the same classes": difference.recoded,
        "newly quarantined": quarantined.added,
        "no longer quarantined": quarantined.removed,
        "quarantined for another reason": quarantined.changed,
        "new duplicates": duplicates.added,
        "no longer duplicates": duplicates.removed,
        "classes added": difference.classes_added,
        "classes removed": difference.classes_removed,
        "classes renamed": [f"{before} -> {now}" for before, now in difference.classes_renamed],
    }
