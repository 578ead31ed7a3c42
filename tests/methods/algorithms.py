"""BiasAdv's Algorithms 1 to 3 as they are printed: two networks, two updates, one after the other, weights in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(logits, labels):
    return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]


class RunningLosses:
    """LfF's released bookkeeping as the specification words it, one image at a time."""

    def __init__(self, classes, alpha=0.7):
        self.classes, self.alpha = np.asarray(classes), alpha  # of all training images
        self.losses = np.zeros((2, len(classes)))  # of theta and of phi
        self.visited = np.zeros(len(classes), bool)

    def weights(self, rows, losses):
        """Take in the losses of a batch, [theta's, phi's], and return its W."""
        for i, loss in zip(rows, np.transpose(losses), strict=True):
            kept = self.alpha * self.losses[:, i] + (1 - self.alpha) * loss
            self.losses[:, i] = kept if self.visited[i] else loss
            self.visited[i] = True
        theta, phi = (
            [table[i] / table[self.visited & (self.classes == self.classes[i])].max() for i in rows]
            for table in self.losses
        )
        return np.array([b / (b + d + 1e-8) for d, b in zip(theta, phi, strict=True)])


class Algorithm:
    """The state of a run by SGD: `phi` and `theta` as (params, batch_stats), `auxiliary` as (norms, batch_stats).

    `attack` holds S, the step a, eps, lambda and beta; Linf in pixels.
    """

    def __init__(self, network, base, variables, classes, attack, *, rate, q=0.7, gce="lff"):
        self.network, self.base, self.attack, self.rate = network, base, attack, rate
        self.theta, self.phi, self.auxiliary = variables
        self.q, self.gce = q, gce
        self.running = RunningLosses(classes)

    def step(self, rows, images, labels):
        """Take one step; return x_adv."""
        adv = self._attack(self.phi, self._branch(), images, labels)
        losses = self._losses(self.theta[0], self.theta[1], *self.phi, images, labels)
        clean, adv_weights = np.ones(len(rows)), np.ones(len(rows))
        if self.base == "lff":
            clean = self.running.weights(rows, losses)
            adv_weights = 1 - clean
        if self.base != "jtt":  # phi is frozen there
            self.phi = self._update_phi(*self.phi, images, labels)
        self._update_theta(images, labels, adv, clean, self.attack["beta"] * adv_weights)
        return adv

    def _branch(self):
        params, stats = self.theta
        if self.auxiliary is None:
            return params, stats
        norms, stats = self.auxiliary
        return params | norms, stats

    @functools.partial(jax.jit, static_argnums=0)
    def _attack(self, phi, branch, images, labels):
        a = self.attack

        def objective(x):
            of_phi = cross_entropy(self.network.apply(*phi, x).logits, labels)
            of_theta = cross_entropy(self.network.apply(*branch, x).logits, labels)
            return (of_phi - a["lambda"] * of_theta).sum()

        adv = images
        for _ in range(a["S"]):
            moved = adv + a["a"] * jnp.sign(jax.grad(objective)(adv))
            adv = jnp.clip(images + jnp.clip(moved - images, -a["eps"], a["eps"]), 0, 1)
        return adv

    @functools.partial(jax.jit, static_argnums=0)
    def _losses(self, theta, theta_stats, phi, phi_stats, images, labels):
        of = lambda *network: cross_entropy(self.network.apply(*network, images, train=True).logits, labels)
        return jnp.stack([of(theta, theta_stats), of(phi, phi_stats)])

    @functools.partial(jax.jit, static_argnums=0)
    def _update_phi(self, phi, stats, images, labels):
        def loss(phi):
            out = self.network.apply(phi, stats, images, train=True)
            p = jax.nn.softmax(out.logits)[jnp.arange(len(labels)), labels]
            value = jnp.mean((1 - p**self.q) / self.q)
            return (self.q if self.gce == "lff" else 1) * value, out.batch_stats

        gradient, stats = jax.grad(loss, has_aux=True)(phi)
        return self._descend(phi, gradient), stats

    def _update_theta(self, images, labels, adv, weights, adv_weights):
        (theta, stats), auxiliary = self.theta, self.auxiliary
        norms, auxiliary_stats = auxiliary or ({}, None)
        theta, norms, stats, adv_stats = self._theta(
            theta, norms, stats, auxiliary_stats, images, labels, adv, weights, adv_weights
        )
        self.theta = theta, stats if auxiliary else adv_stats
        self.auxiliary = auxiliary and (norms, adv_stats)

    @functools.partial(jax.jit, static_argnums=0)
    def _theta(self, theta, norms, stats, auxiliary_stats, images, labels, adv, weights, adv_weights):
        def loss(theta, norms):
            clean = self.network.apply(theta, stats, images, train=True)
            start = clean.batch_stats if auxiliary_stats is None else auxiliary_stats
            perturbed = self.network.apply(theta | norms, start, adv, train=True)
            total = weights @ cross_entropy(clean.logits, labels)
            total += adv_weights @ cross_entropy(perturbed.logits, labels)
            return total / len(labels), (clean.batch_stats, perturbed.batch_stats)

        gradients, (stats, adv_stats) = jax.grad(loss, argnums=(0, 1), has_aux=True)(theta, norms)
        return self._descend(theta, gradients[0]), self._descend(norms, gradients[1]), stats, adv_stats

    def _descend(self, params, gradient):
        return jax.tree.map(lambda value, slope: value - self.rate * slope, params, gradient)
