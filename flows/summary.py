"""What a person sees of a run in Prefect: a table of the stages, and the decision with its reasons and pictures."""

import re
from itertools import islice
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.markdown import escaped
from flows.progress import harmless
from flows.stages import Outcome

SHOWN = ("test image", "mask", "prediction", "errors")  # of the first one in the report
PICTURE = re.compile(r'href="(data:image/(?:png|jpeg);base64,[^"]+)"')


class Summary:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._outcomes: dict[str, Outcome] = {}
        self.registered: dict[str, Any] = {}  # what `pspnet register --promote --json` says

    def add(self, outcome: Outcome) -> None:
        self._outcomes[outcome.stage] = outcome

    def is_new(self, stage: str) -> bool:
        return stage in self._outcomes and self._outcomes[stage].how != "unchanged"

    @property
    def headline(self) -> str:
        return str(self.registered["headline"])

    def publish(self) -> None:
        with harmless():
            said = escaped(self.headline)
            create_table_artifact([self._row(one) for one in self._outcomes.values()], "stages", said)
            create_markdown_artifact("\n\n".join(self._parts()), "summary", said)

    def _row(self, one: Outcome) -> dict[str, Any]:
        page = self.registered["pages"].get(one.stage)
        link = f"[MLflow run]({page})" if page else ""
        return {"stage": one.stage, "": one.how, "seconds": round(one.seconds, 1), "where": one.where, "run": link}

    def _parts(self) -> list[str]:
        facts = self.registered
        decision = facts["promotion"]["decision"]
        parts = [f"# {escaped(self.headline)}", f"Test mIoU **{facts['test_mean_iou']:.3f}**"]
        if decision:
            marks = {True: "passed", False: "**not passed**"}
            reasons = [
                f"| {marks[one['passed']]} | {escaped(one['rule'])} | {escaped(one['text'])} |"
                for one in decision["reasons"]
            ]
            parts.append("\n".join(["| | rule | found |", "|---|---|---|", *reasons]))
        rows = [self._row(one) for one in self._outcomes.values()]
        table = [
            f"| {escaped(row['stage'])} | {row['']} | {row['seconds']} | {escaped(row['where'])} | {row['run']} |"
            for row in rows
        ]
        parts.append("\n".join(["| stage | | seconds | where | |", "|---|---|---|---|---|", *table]))
        links = [f"[{escaped(name)}]({page})" for name, page in facts["pages"].items() if name not in self._outcomes]
        parts.append(" · ".join(links))
        if pictures := self._pictures():
            rows_of_pictures = [SHOWN, ("---",) * len(SHOWN), [f"![]({picture})" for picture in pictures]]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows_of_pictures))
        return [part for part in parts if part]

    def _pictures(self) -> list[str]:
        page = self._folder / self.registered["report"]
        found = PICTURE.finditer(page.read_text(encoding="utf-8")) if page.exists() else iter(())
        return [match[1] for match in islice(found, len(SHOWN))]
