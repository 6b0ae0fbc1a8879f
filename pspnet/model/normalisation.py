"""BatchNorm that also trains where a batch has a single value of each channel."""

from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """One value has no variance: torch refuses it, and its own mean would leave only the bias.

    A batch of one image is that in the pyramid's 1x1 bin, and in every layer whose features are 1x1. There the
    running statistics normalise in training as they do afterwards, and stay what they are. With synchronised BatchNorm
    over several devices the batch is that of all of them, and this does not occur.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
