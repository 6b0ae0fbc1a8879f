"""A part of a stage for a run that goes on elsewhere (flows.parts), which fetches it from the DVC remote."""

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.attempts import attempt, done
from flows.commands import run
from flows.dag import Stage, read_dag
from flows.data import bring_up_to_date, dvc
from flows.ending import Trouble, trouble
from flows.parts import folder_of
from flows.progress import Progress
from flows.stages import EXITS, as_task
from flows.workplace import Workplace


@flow(name="part", persist_result=False)
def part(name: str, number: int, of: int, files: dict[str, str]) -> State[Any]:
    """`files`: the params.yaml, dvc.lock and .dvc files of the run that wants it. It tells the part's .dvc file."""

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        workplace.write(files)
        dag = read_dag(workplace.folder)
        stage = dag.named(name)
        sources, folder = dag.sources_of(stage), folder_of(number, of)
        for source in sources:
            bring = as_task(source.name, bring_up_to_date, retries=5)
            done(bring(workplace, source, environment, files, dag.has_remote))
        make = as_task(f"part {number}/{of}", make_part, stage.retries)
        done(make(workplace, stage, f"{number}/{of}", folder, environment))
        done(as_task("push", share, retries=3)(workplace, folder, environment))
        for path in (folder, *(Path(source.name) for source in sources)):  # a host may have many of these worktrees
            shutil.rmtree(workplace.folder / path, ignore_errors=True)
        return Completed(message=(workplace.folder / f"{folder}.dvc").read_text(encoding="utf-8"))

    return attempt(work)


def make_part(
    workplace: Workplace, stage: Stage, which: str, folder: Path, environment: Mapping[str, str]
) -> Trouble | None:
    """The command of the stage, whose last --out counts. Killed and started again, it goes on."""
    exit_file = workplace.folder / EXITS / f"{stage.name}-part.json"
    exit_file.unlink(missing_ok=True)
    command = [*shlex.split(stage.command), "--part", which, "--out", str(folder)]
    progress, log = Progress(stage.name), get_run_logger().info

    def tell(line: str) -> None:
        log(line)
        progress.read(line)

    ended = run(command, workplace.folder, environment, tell, stage.timeout_seconds)
    found = trouble(ended, stage.timeout_seconds, exit_file)
    if not found:
        progress.finish()
    return found


def share(workplace: Workplace, folder: Path, environment: Mapping[str, str]) -> Trouble | None:
    found = dvc(workplace.folder, environment, "add", str(folder))
    return found or dvc(workplace.folder, environment, "push", f"{folder}.dvc")
