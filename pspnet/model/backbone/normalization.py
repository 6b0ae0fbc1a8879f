"""BatchNorm that also trains on batches with a single value per channel."""

from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """A single value has no variance, so torch raises an error, and subtracting its mean would leave only the bias.

    This happens with a single image, in the pyramid's 1x1 bin and in every layer with 1x1 features. In that case, the
    running statistics are used during training as they are afterwards, and do not change. It does not happen when
    BatchNorm is synchronized over several devices, because the batch spans all of them.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
