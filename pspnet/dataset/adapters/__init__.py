"""Layouts of raw data: each turns a folder into the samples in it, and the problems of files that are none."""

from collections.abc import Callable, Iterator

from pspnet.config.dataset import DatasetParams
from pspnet.dataset.adapters import folder
from pspnet.dataset.raw import RawFiles
from pspnet.dataset.raw_samples import RawSample
from pspnet.errors import Problem

Layout = Callable[[DatasetParams, RawFiles], Iterator[RawSample | Problem]]

LAYOUTS: dict[str, Layout] = {"folder": folder.find}
