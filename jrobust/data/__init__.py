"""Sources of labelled images, augmentation on the device and resumable input pipelines."""

from jrobust.data.augment import Augmentation, output_shape
from jrobust.data.balance import balanced
from jrobust.data.held_out import Divided, held_out
from jrobust.data.pipeline import TrainBatches, evaluation_batches, for_evaluation, make_prepare
from jrobust.data.registry import load
from jrobust.data.repeated import repeated
from jrobust.data.source import Source, from_arrays
from jrobust.data.statistics import channel_statistics

__all__ = [
    "Augmentation",
    "Divided",
    "Source",
    "TrainBatches",
    "balanced",
    "channel_statistics",
    "evaluation_batches",
    "for_evaluation",
    "from_arrays",
    "held_out",
    "load",
    "make_prepare",
    "output_shape",
    "repeated",
]
