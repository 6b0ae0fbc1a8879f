"""BatchNorm that also trains on batches with a single value per channel."""

from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """A single value has no variance: torch refuses it, and subtracting its mean would leave only the bias.

    This happens with one image in the pyramid's 1x1 bin, and in every layer whose features are 1x1. The running
    statistics then normalize during training as they do afterwards, and are left unchanged. It does not happen with
    BatchNorm synchronized over several devices, whose batch spans all of them.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
