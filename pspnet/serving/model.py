"""A registered version, as MLflow loads it. MLflow copies this file into the version and runs the copy."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.models
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import CANCELLED, INTERNAL_ERROR, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc.model import PythonModel

import pspnet
from pspnet.errors import UserError

CODE = Path(__file__).parent / "code"  # next to this file once it is in a version


class Answer(MlflowException):
    """An error that the client receives in place of rows."""

    def serialize_as_json(self) -> str:
        # Not self.message, because MLflow's server adds the request to the message: possibly megabytes of base64.
        return json.dumps({"error_code": self.error_code, "message": str(self)})


class SegmentationModel(PythonModel):
    def __init__(self) -> None:
        self.given_up: Callable[[], bool] = lambda: False  # server.py replaces it

    def load_context(self, context: Any) -> None:
        in_use = Path(pspnet.__file__).parent
        if CODE.is_dir() and not in_use.resolve().is_relative_to(CODE.resolve()):
            raise RuntimeError(
                f"{CODE.parent}: this process uses the pspnet of {in_use}; expected the version's own in {CODE}. "
                "Load the version in a process that has not imported pspnet (pspnet.serving.client does)."
            )
        # Not imported at the top: a different pspnet may not have this module, and the ImportError would hide the
        # message above.
        from pspnet.serving.service import Service

        self._service = Service(Path(context.artifacts["bundle"]), context.model_config)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        try:
            return self._service.answer(model_input, self.given_up)
        except UserError as error:
            raise Answer(str(error), INVALID_PARAMETER_VALUE) from None
        except Exception as error:
            if self.given_up():
                raise Answer(
                    "The request was abandoned: its client disconnected or its time ran out.", CANCELLED
                ) from None
            logging.getLogger(__name__).exception("A request failed.")
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch raises the latter
                found = "The request needs more memory than is free. Try again, or send fewer or smaller images."
                raise Answer(found, TEMPORARILY_UNAVAILABLE) from None
            raise Answer("The server failed; see its log.", INTERNAL_ERROR) from None


mlflow.models.set_model(SegmentationModel())
