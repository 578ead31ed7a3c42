"""Saliency maps, how alike two of them are, and the boxes they draw: functions of functions, no network in sight."""

from jrobust.attributions.agreement import (
    cosine_distance,
    kendall,
    kendall_scipy,
    masked_kendall,
    top_k_intersection,
)
from jrobust.attributions.gradcam import grad_cam
from jrobust.attributions.gradients import empty_maps, input_gradient, saliency
from jrobust.attributions.integrated import Attribution, ig_ce, ig_logit, ig_probability, integrated_gradients

__all__ = [
    "Attribution",
    "cosine_distance",
    "empty_maps",
    "grad_cam",
    "ig_ce",
    "ig_logit",
    "ig_probability",
    "input_gradient",
    "integrated_gradients",
    "kendall",
    "kendall_scipy",
    "masked_kendall",
    "saliency",
    "top_k_intersection",
]
