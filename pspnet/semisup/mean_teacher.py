"""Mean teacher (Tarvainen and Valpola, 2017) with CutMix (French et al., 2020): one strong view."""

from typing import ClassVar

from pspnet.config.finetune import MeanTeacherParams
from pspnet.semisup.pseudo_labels import PseudoLabels


class MeanTeacher(PseudoLabels[MeanTeacherParams]):
    streams: ClassVar = {"strong_0": 1.0}
    strong_views = 1
