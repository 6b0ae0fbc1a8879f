"""The ImageNet weights from torchvision."""

from pickle import UnpicklingError

from torch import Tensor, hub

from pspnet.errors import Busy, Problem, UserError, is_network
from pspnet.model.backbone.resnet import ResNet
from pspnet.model.backbone.weights import load_tensors


def load_imagenet(backbone: ResNet) -> None:
    """Load the weights into a backbone with width 1 and stem seven. They are downloaded once, then read from torch's
    cache.
    """
    from torchvision.models import get_weight  # this import takes a second, which most training runs can avoid

    weights = get_weight(f"ResNet{backbone.depth}_Weights.IMAGENET1K_V1")  # V2 exists only for some depths
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (UnpicklingError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        fix = "Remove it, and it will be downloaded again."
        raise UserError(Problem(f"{hub.get_dir()}/checkpoints", f"contains no tensors ({reason})", fix=fix)) from None
    except (OSError, RuntimeError) as error:  # RuntimeError means that the hash differs from the one in the file name
        problem = Problem(
            "backbone.weights: imagenet",
            f"{weights.url} could not be fetched ({error}), and is not in {hub.get_dir()}/checkpoints",
            "a connection, or the file in that folder",
            "If you have the file, use `pspnet weights import FILE --from torchvision` and backbone.weights: imported.",
        )
        if is_network(error):
            raise Busy(str(problem)) from None
        raise UserError(problem) from None
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    load_tensors(backbone, with_counts(backbone, own), weights.url)


def with_counts(backbone: ResNet, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add BatchNorm's batch counts to `tensors`. Older files lack them, and nothing here reads them."""
    counts = {name: own for name, own in backbone.state_dict().items() if name.endswith("num_batches_tracked")}
    return counts | tensors
