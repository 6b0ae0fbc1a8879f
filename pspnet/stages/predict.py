"""A folder of images and one or more bundles -> masks, overlays and a table. Resumes where a killed run stopped."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pspnet.config.predict import PredictParams
from pspnet.config.prepare import PrepareParams
from pspnet.config.runtime import RuntimeParams
from pspnet.errors import Problem, UserError
from pspnet.model.backbone.digest import digest
from pspnet.model.bundle import Bundle
from pspnet.prediction import submission
from pspnet.prediction.folder import MASKS, opened
from pspnet.prediction.image.predictor import Member, Predictor
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.prediction.images import list_images, predict_images
from pspnet.training.shared.runtime import configure

SUBMISSION = "submission"


def run(
    prepare: PrepareParams,
    predict: PredictParams,
    runtime: RuntimeParams,
    *,
    images: Path,
    bundles: Sequence[Path],
    out: Path,
    layout: str | None,
    tick: Callable[[int, int, str], None],
) -> list[Problem]:
    """Predict the images; returns a Problem for each unreadable one. `layout`: the benchmark of a submission."""
    files, refused = list_images(images, out)
    models = _of_one_kind(bundles)
    classes = models[0].classes
    submitted = submission.mask_names(layout, files, classes, bundles[0]) if layout else {}
    device = configure(runtime)
    members = [Member(model.network.to(device), model.preprocessing) for model in models]
    predictor = Predictor(members, PredictionProtocol(**predict.model_dump()), device, runtime.precision)
    digests = [digest(bundle) for bundle in bundles]
    settings = {"bundles": digests, "precision": runtime.precision, **predict.model_dump()}
    max_pixels = round(prepare.max_megapixels * 1e6)
    with opened(out, images, settings, classes, models[0].colors) as folder:
        refused += predict_images(folder, images, files, predictor, max_pixels, tick)
        folder.finish()
        if layout:
            names = {image: submitted[image] for image in folder.finished}
            submission.write(layout, out / MASKS, names, classes, out / SUBMISSION)
    return refused


def _of_one_kind(bundles: Sequence[Path]) -> list[Bundle]:
    """The bundles, which must have the same classes: probabilities are averaged class by class."""
    models = [Bundle.load(bundle) for bundle in bundles]
    for bundle, model in zip(bundles, models, strict=True):
        if model.classes != models[0].classes:
            found = f"knows the classes {', '.join(model.classes)}"
            raise UserError(Problem(str(bundle), found, f"those of {bundles[0]}: {', '.join(models[0].classes)}"))
    return models
