"""The gate's decisions. Each is stored as an MLflow run: the question, the decision, its reasons, and a page."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspnet.machine.process import user
from pspnet.registry.decision_page import decision_page
from pspnet.registry.gate import Decision
from pspnet.registry.versions import Version, Versions
from pspnet.tracking.connection import experiment
from pspnet.tracking.pipeline import log_metrics

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

JSON, PAGE = "decision.json", "decision.html"
FORMAT = 1
LONGEST_TAG = 4000


def question_key(
    candidate: str, champion: str, fingerprint: str, rules: dict[str, Any], withdrawn: bool, forced: bool
) -> str:
    """Return the digest that identifies a question to the gate. Each question is decided only once."""
    facts = [candidate, champion, fingerprint, rules, withdrawn, forced]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Decisions:
    def __init__(self, client: "MlflowClient", state: Path, versions: Versions) -> None:
        self._client, self._versions = client, versions
        self._home = experiment(client, state, versions.model)

    def find(self, key: str, version: Version) -> Decision | None:
        """Return the earlier decision on a question, if any, and show it on the version's page again."""
        from mlflow.artifacts import load_dict

        run = self._run(key)
        if run is None or run.info.status != "FINISHED":
            return None
        facts = load_dict(f"{run.info.artifact_uri}/{JSON}")
        if facts.pop("format", None) != FORMAT:  # written by a different version of pspnet: decide again
            return None
        decision = Decision.from_json(facts)
        self._show(version, decision, str(run.info.run_id))
        return decision

    def count(self, fingerprint: str, besides: str) -> int:
        """Count the decisions based on this test split, except for the one in progress."""
        filter_string = (
            f"tags.`pspnet.kind` = 'decision' and tags.fingerprint = '{fingerprint}' and tags.question != '{besides}'"
        )
        return len(self._client.search_runs([self._home], filter_string, max_results=50_000))

    def record(self, key: str, decision: Decision, version: Version) -> str:
        """Record a decision and return the id of its run. If this is killed, repeating it completes the same run."""
        run = self._run(key)
        if run is None:
            tags = {
                "pspnet.kind": "decision",
                "question": key,
                "fingerprint": decision.fingerprint,
                "outcome": decision.outcome,
                "summary": decision.summary()[:LONGEST_TAG],
                "digest": decision.digest,
                "candidate": str(version.number),
                "champion": str(decision.champion.version) if decision.champion else "none",
                "mlflow.user": user(),
            }
            if version.run_id:
                tags["mlflow.parentRunId"] = version.run_id
            name = f"decision-on-version-{version.number}"
            run = self._client.create_run(self._home, tags=tags, run_name=name)
        run_id = str(run.info.run_id)
        figures = {
            "test_mean_iou": decision.candidate.mean_iou,
            "champion_mean_iou": decision.champion.mean_iou if decision.champion else None,
            "difference": decision.difference,
            "difference_low": decision.interval[0] if decision.interval else None,
            "difference_high": decision.interval[1] if decision.interval else None,
        }
        known = run.data.metrics
        new = {name: value for name, value in figures.items() if value is not None and name not in known}
        log_metrics(self._client, run_id, new)
        with tempfile.TemporaryDirectory() as folder:
            facts = {"format": FORMAT, **decision.as_json()}
            Path(folder, JSON).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            Path(folder, PAGE).write_text(decision_page(decision), encoding="utf-8")
            self._client.log_artifacts(run_id, folder)
        self._show(version, decision, run_id)
        self._client.set_terminated(run_id)  # done last: `find` returns only finished runs
        return run_id

    def _show(self, version: Version, decision: Decision, run_id: str) -> None:
        """Show the decision on the version's page."""
        if version.tags.get("decision.run") == run_id:
            return
        summary = decision.summary()[:LONGEST_TAG]
        reasons = "\n".join(f"{'+' if reason.passed else '-'} {reason.text}" for reason in decision.reasons)
        self._client.update_model_version(self._versions.model, str(version.number), summary)
        self._versions.set_tags(
            version.number,
            {
                "decision": decision.outcome,
                "decision.summary": summary,
                "decision.reasons": reasons[:LONGEST_TAG],
                "decision.run": run_id,  # written last, because it marks the other tags as complete
            },
        )

    def of(self, version: Version) -> "list[Run]":
        """Return the runs of all decisions on a version, oldest first."""
        filter_string = f"tags.`pspnet.kind` = 'decision' and tags.candidate = '{version.number}'"
        found = self._client.search_runs([self._home], filter_string, order_by=["attributes.start_time ASC"])
        return list(found)

    def _run(self, key: str) -> "Run | None":
        found = self._client.search_runs(
            [self._home], f"tags.question = '{key}'", max_results=1, order_by=["attributes.start_time ASC"]
        )
        return found[0] if found else None
