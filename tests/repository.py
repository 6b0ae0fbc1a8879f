"""Git and DVC repositories for tests. DVC is called in this process and starts another process only to run a stage."""

import subprocess
import sys
from pathlib import Path

from tests.command import call
from tests.raw.rawdata import write


def git(*words: str, cwd: Path) -> str:
    return subprocess.run(("git", *words), cwd=cwd, check=True, capture_output=True, text=True).stdout


def commit(folder: Path, message: str) -> None:
    git("add", "--all", cwd=folder)
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", message, cwd=folder)


def dvc(*words: str, cwd: Path) -> None:
    """Run a DVC command that must succeed."""
    from dvc.cli import main

    done = call(lambda: sys.exit(main(list(words))), cwd, ("dvc", *words))
    assert done.returncode == 0, f"dvc {' '.join(words)} ended with {done.returncode}:\n{done.stderr}"


def new_repository(folder: Path, config: str = "") -> None:
    """Make a git and DVC repository, like `dvc init`. `folder` may already be in a git repository."""
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        git("init", "--quiet", cwd=folder)
    write(folder / ".dvc/config", f"[core]\n    analytics = false\n    check_update = false\n{config}")
    write(folder / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    write(folder / ".dvcignore", "")
