"""Image classifiers as flax.linen modules, with normalisation inside and a softplus path over the same variables."""
