"""The patches on which a classifier of CLIP's rests: `attributions.relevance` on its tower and its head."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jrobust.attributions.gradients import logit_score
from jrobust.attributions.relevance import attention_relevance
from jrobust.models.clip.tower_classifier import TowerClassifier
from jrobust.training.method import Variables


@dataclasses.dataclass(frozen=True)
class PatchRelevance:
    """Relevance maps of a vision transformer; hashable, holds no arrays."""

    classifier: TowerClassifier

    def features_and_maps(
        self, params: Any, state: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return f(x) float32[B, E] and the map float32[B, g, g] of the label's logit, from one forward pass.

        The features may be differentiated; the map is a constant. See `attention_relevance`.

        Raises:
          InputError: the tower is a ResNet.
        """
        clip = self.classifier.clip
        fixed = jax.lax.stop_gradient(params)
        return attention_relevance(
            lambda factors: self.classifier.features(params, state, images, factors=factors),
            clip.no_factors(len(images)),
            logit_score(lambda features: self.classifier.head(fixed, state, features), labels),
            clip.patches(),
        )

    def maps(self, deployed: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the maps float32[B, g, g] alone."""
        return self.features_and_maps(deployed.params, deployed.state, images, labels)[1]
