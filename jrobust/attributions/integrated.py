"""Integrated gradients (Sundararajan et al. 2017), differentiable in constant memory, and the maps made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jrobust import errors, loops
from jrobust.attributions import gradients
from jrobust.attributions.gradients import LogitsFn, ScoreFn

Rule = Literal["right", "left", "midpoint", "trapezoid", "gauss_legendre"]
SaliencyFn = Callable[[jax.Array], jax.Array]  # images float[B, H, W, C] -> maps float[B, H * W]


class Attribution(NamedTuple):
    """Integrated gradients of a batch.

    Attributes:
      attribution: float[B, H, W, C], signed, in units of the score.
      completeness_error: float[B], sum(attribution) - (score(x) - score(b)); 0 for the exact integral. Costs two
        evaluations of the score, which the compiler drops where nobody uses it.
    """

    attribution: jax.Array
    completeness_error: jax.Array


def path_points(num_points: int, rule: Rule = "right") -> tuple[np.ndarray, np.ndarray]:
    """Return the points a_i in [0, 1] of a path and their weights w_i, which sum to 1 (float64).

    With m = `num_points`: "right" i/m, i = 1..m; "left" i/m, i = 0..m-1; "midpoint" (i - 1/2)/m; "trapezoid" the m + 1
    points i/m, i = 0..m, the two ends with half a weight; "gauss_legendre" the m nodes of that rule.

    >>> path_points(2, "trapezoid")
    (array([0. , 0.5, 1. ]), array([0.25, 0.5 , 0.25]))
    """
    if num_points < 1:
        raise errors.InputError(f"num_points={num_points}: the path of integrated gradients needs at least 1 point")
    if rule == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(num_points)
        return (nodes + 1) / 2, weights / 2
    steps = np.arange(num_points + 1.0)
    offsets = {"right": steps[1:], "left": steps[:-1], "midpoint": steps[:-1] + 0.5, "trapezoid": steps}
    if rule not in offsets:
        raise errors.unknown("path rule", rule, get_args(Rule))
    points = offsets[rule] / num_points
    weights = np.full(points.shape, 1 / num_points)
    if rule == "trapezoid":
        weights[[0, -1]] /= 2
    return points, weights


def integrated_gradients(
    score_fn: ScoreFn,
    images: jax.Array,
    *,
    baseline: float | jax.Array = 0.0,
    num_points: int = 100,
    rule: Rule = "right",
    chunk: int | None = None,
    detach_factor: bool = False,
    unroll: bool | None = None,
) -> Attribution:
    """Integrate the gradient of a score along the straight line from a baseline b to each image x.

        IG(x) = (x - b) * sum_i w_i grad score(b + a_i (x - b))        (Sundararajan et al. 2017, Eq. 3)

    All images times `chunk` points form one batch; the chunks are summed in a loop. The result can be differentiated
    in reverse mode with respect to images, baseline and whatever `score_fn` closes over: each chunk is rematerialised,
    so that the first pass keeps no activations and the second, which computes Hessian-vector products, holds those of
    one chunk. Memory is proportional to B * `chunk` and does not depend on `num_points`. Numbers do not depend on
    `chunk` beyond rounding.

    Args:
      score_fn: images float[B, H, W, C] -> float[B], each example's score from that example alone (batch norm on
        running statistics). It is mapped over the points of a chunk with `vmap`, so it may close over arrays [B, ...].
      images: float[B, H, W, C].
      baseline: the start of the path, anything that broadcasts to `images`: a number (0 is the black pixel image),
        one image, or one image an example.
      num_points: m; see `path_points`.
      rule: see `path_points`.
      chunk: points in memory at once; all of them by default.
      detach_factor: treat the factor (x - b) as a constant when differentiating the result. Same values; this is the
        derivative used by the released ART code. The derivative through the points of the path stays.
      unroll: the form of the loop over chunks; see `jrobust.loops`.

    Raises:
      InputError: num_points or chunk below 1, or an unknown rule.
    """
    points, weights = path_points(num_points, rule)
    chunk = len(points) if chunk is None else min(chunk, len(points))
    if chunk < 1:
        raise errors.InputError(f"chunk={chunk}: at least 1 point of the path has to be in memory")
    images = gradients.wide(images)
    base = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)

    factor = images - base
    total = _path_sum(score_fn, base, factor, (points, weights), chunk, unroll)
    attribution = (jax.lax.stop_gradient(factor) if detach_factor else factor) * total
    rise = gradients.wide(score_fn(images)) - gradients.wide(score_fn(base))
    return Attribution(attribution, attribution.reshape(attribution.shape[0], -1).sum(-1) - rise)


def _path_sum(
    score_fn: ScoreFn,
    start: jax.Array,
    factor: jax.Array,
    points: tuple[np.ndarray, np.ndarray],
    chunk: int,
    unroll: bool | None,
) -> jax.Array:
    """Return sum_i w_i grad score(start + a_i factor), `chunk` of the points (a_i, w_i) at a time, in both passes.

    The second pass is `jax.checkpoint`'s, written out so that each chunk is computed again only after the gradient of
    the one before: where the loop is unrolled, the compiler would otherwise be free to compute all of them again first.
    """
    traced = jax.make_jaxpr(score_fn)(start)  # with what the score closes over, weights for one, as arguments
    # Of NumPy: what the second pass closes over may not belong to the trace of the first.
    points = points[0].astype(factor.dtype), points[1].astype(factor.dtype)
    whole = len(points[0]) // chunk * chunk

    def weighted_gradient(start: jax.Array, factor: jax.Array, held: Any, a: jax.Array, w: jax.Array) -> jax.Array:
        score = jax.vmap(lambda x: core.jaxpr_as_fun(core.ClosedJaxpr(traced.jaxpr, held))(x)[0])
        return jnp.tensordot(w, gradients.input_gradient(score, start + a * factor), 1)

    def over_chunks(term: Callable[[jax.Array, jax.Array], Any], zeros: Any) -> Any:
        """Sum term(a, w) over the chunks: a pair of lists, of arrays with an axis of examples and of others."""

        def add(total: Any, aw: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            done = [leaf[:, :1, :1, :1] for leaf in jax.tree.leaves(total[0])] + loops.elements(total[1])
            a = loops.after(jnp.asarray(aw[0])[:, None, None, None, None], *done, unroll=unroll)
            return jax.tree.map(jnp.add, total, term(a, aw[1])), None

        chunks = jax.tree.map(lambda rows: rows[:whole].reshape(-1, chunk), points)
        total, _ = loops.scan(add, zeros, chunks, unroll=unroll)
        if whole < len(points[0]):
            total, _ = add(total, jax.tree.map(lambda rows: rows[whole:], points))
        return total

    @jax.custom_vjp
    def path_sum(line: tuple[jax.Array, jax.Array], held: Any) -> jax.Array:
        one = over_chunks(lambda a, w: ([weighted_gradient(*line, held, a, w)], []), ([jnp.zeros_like(line[0])], []))
        return one[0][0]

    def forward(*arguments: Any) -> tuple[jax.Array, Any]:
        values = jax.tree.map(lambda argument: argument.value, arguments)
        moving = jax.tree.map(lambda argument: argument.value if argument.perturbed else None, arguments)
        return path_sum(*values), (values, moving)

    def backward(residuals: Any, slope: jax.Array) -> Any:
        values, moving = residuals

        def term(a: jax.Array, w: jax.Array) -> Any:
            def along(moving: Any) -> jax.Array:
                given = jax.tree.map(lambda value, moved: value if moved is None else moved, values, moving)
                (start, factor), held = given
                return weighted_gradient(start, factor, held, a, w)

            return jax.vjp(along, moving)[1](slope)[0]

        return over_chunks(term, jax.tree.map(jnp.zeros_like, moving))

    path_sum.defvjp(forward, backward, symbolic_zeros=True)
    return path_sum((start, factor), traced.consts)


class PathOptions(TypedDict, total=False):
    """The arguments of `integrated_gradients` that the named maps below pass on."""

    baseline: float | jax.Array
    num_points: int
    chunk: int | None
    detach_factor: bool
    unroll: bool | None


def ig_logit(logits_fn: LogitsFn, labels: jax.Array, **path: Unpack[PathOptions]) -> SaliencyFn:
    """Return the map IG_logit: images float[B, H, W, C] -> float32[B, H * W] that sums to H * W.

    Integrated gradients of the logit of class `labels` int[B] from a black image, points i/m for i = 1..m with equal
    weights (m = 100), absolute values summed over channels. What attacks on attributions change and judge (Ghorbani et
    al. 2019; Chen et al. 2019; Singh et al. 2020). `path` changes the arguments of `integrated_gradients`.
    """
    return _saliency_fn(gradients.logit_score(logits_fn, labels), "right", "sum", path)


def ig_ce(logits_fn: LogitsFn, labels: jax.Array, **path: Unpack[PathOptions]) -> SaliencyFn:
    """Return the map IG_ce: images float[B, H, W, C] -> float32[B, H * W] that sums to H * W.

    Integrated gradients of the cross-entropy with respect to class `labels` int[B] from a black image, trapezoid over
    the points i/m for i = 0..m (m = 100), absolute values averaged over channels. The metric behind the CIFAR-10
    numbers of Singh et al. 2020; its ranks differ from those of IG_logit. Empty where the cross-entropy is saturated
    all along the path. `path` changes the arguments of `integrated_gradients`.
    """
    return _saliency_fn(gradients.cross_entropy_score(logits_fn, labels), "trapezoid", "mean", path)


def ig_probability(logits_fn: LogitsFn, labels: jax.Array, **path: Unpack[PathOptions]) -> SaliencyFn:
    """Return the map that `targeted_dombrowski` changes: images -> float32[B, H * W] that sums to H * W.

    Integrated gradients of the softmax probability of class `labels` int[B], points i/m for i = 1..m (m = 30), absolute
    values summed over channels (Dombrowski et al. 2019, who start at zero in normalised space: pass `baseline=mean`).
    """
    defaults: PathOptions = {"num_points": 30}
    return _saliency_fn(gradients.probability_score(logits_fn, labels), "right", "sum", {**defaults, **path})


def _saliency_fn(score_fn: ScoreFn, rule: Rule, reduce: gradients.Reduce, path: PathOptions) -> SaliencyFn:
    def maps(images: jax.Array) -> jax.Array:
        return gradients.saliency(integrated_gradients(score_fn, images, rule=rule, **path).attribution, reduce)

    return maps
