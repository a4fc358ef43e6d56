r"""Which points of a plane to evaluate next, and what the others are likely to be.

A coarse grid is refined where it may still be wrong, until the estimated error of every point that
is not evaluated is below the tolerance. Around each such point the nearest evaluated ones are
interpolated by a Gaussian process whose mean is a quadratic (kriging; Rasmussen & Williams 2006,
chapter 2): with :math:`C` the covariance of the neighbors and :math:`c` theirs with the point,

.. math::
    \hat y = c^T C^{-1} y, \qquad s^2 = k(0) - c^T C^{-1} c, \qquad
    y_i - \hat y_{-i} = \frac{(C^{-1} y)_i}{(C^{-1})_{ii}}, \qquad
    s_{-i}^2 = \frac{1}{(C^{-1})_{ii}}

The last two predict each neighbor from the others. Their ratio says how rough the surface is here
on the scale on which :math:`s` is smooth, so that the error at the point is about

.. math:: e = s \sqrt{\langle (y_i - \hat y_{-i})^2 / s_{-i}^2 \rangle}

Four models compete at every point, by how well they predict the neighbors: a kernel with one
derivative, which suffers little from kinks, and one with two; in the loss itself, and in its
logarithm above the clip's scale, in which steep walls are smooth.

What counts is the picture: values above the clip are all the same. So points far above it, and a
region that is not finite and lies among them, are left alone, and the borders are resolved. A
feature that falls between the points of the coarse grid cannot be found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

COARSE = 11
"""Points along each axis of the grid that is evaluated first."""
NEIGHBORS = 25
BLOCK = 4096
"""Targets that are fitted at once, for the sake of memory."""
SAFETY = 4.0
"""Standard errors within the tolerance. At three and a half, the worst of 50 surfaces was at it."""
GIVE_UP = 0.7
"""When this part of the points is evaluated and it is not enough, the surface has no structure that
an interpolation could use, nor its estimates of the error: the others are evaluated, too."""
ROUNDS = 40
"""At most about one in so many of the points is evaluated in a round."""
MARGIN = 0.15
"""How far above a clip that is not given the surface is resolved, over its range: a drawing rounds
its highest level upward."""
QUADRATIC_VARIANCE = 1e2
NUGGET = 1e-9
LENGTH = 3.0
"""The kernels' length over the distance of the farthest neighbor: they are nearly polynomials."""
NEAR = 0.35
"""Neighbors count for the roughness with a Gaussian weight of this width, in the same unit."""
HIGHEST = 1e8
"""Losses beyond so many times the drawn range are all the same to a fit."""


class Proposal(NamedTuple):
    """What is known after a round.

    Attributes:
        values: evaluated and interpolated, shape (a, b).
        clip: the highest loss that counts.
        wanted: indices of the points to evaluate next, ascending; none when the values are within
            the tolerance.
    """

    values: Floats
    clip: float
    wanted: NDArray[np.int64]


class _Scale(NamedTuple):
    """The range of losses that is drawn: the lowest, the clip, and up to where it is resolved."""

    low: float
    clip: float
    top: float

    @property
    def range(self) -> float:
        return self.clip - self.low


class _Neighborhoods(NamedTuple):
    """The evaluated points around each target.

    Attributes:
        indices: shape (targets, k).
        offsets: from the target, over the distance of the farthest one, shape (targets, k, 2).
        weights: how much each says about the surface at the target, shape (targets, k); rows sum
            to one.
    """

    indices: NDArray[np.int64]
    offsets: Floats
    weights: Floats


class _Missing(NamedTuple):
    """The targets beside values that are not finite.

    Attributes:
        inside: whether the nearest evaluated point is one of these, shape (targets,).
        value: of the nearest of these, NaN or infinite, shape (targets,).
        at_border: whether the next one might be of the other kind, shape (targets,).
        lowest_near: the lowest finite value among the three nearest, shape (targets,).
    """

    inside: Bools
    value: Floats
    at_border: Bools
    lowest_near: Floats


class _Kriging(NamedTuple):
    """What depends on the places alone, for each target.

    Attributes:
        inverse: of the covariance, shape (targets, k, k).
        weights: of the neighbors' values in the prediction, shape (targets, k).
        deviation: of the prediction, for a surface of unit roughness, shape (targets,).
    """

    inverse: Floats
    weights: Floats
    deviation: Floats


def coarse_grid(shape: tuple[int, int]) -> NDArray[np.int64]:
    """Indices of the points to begin with, borders included."""
    rows, columns = (
        np.unique(np.linspace(0, count - 1, min(count, COARSE)).round().astype(np.int64))
        for count in shape
    )
    indices: NDArray[np.int64] = (rows[:, None] * shape[1] + columns).reshape(-1)
    return indices


def propose(values: Floats, known: Bools, tolerance: float, clip: float | None) -> Proposal:
    """Interpolates what is not known, and says where that is not good enough.

    Args:
        values: shape (a, b), anything where not known.
        known: shape (a, b).
        tolerance: the largest error over the drawn range.
        clip: the highest loss that counts, or None: half of the plane lies below it.
    """
    places, flat, known = _places(values.shape), values.reshape(-1).copy(), known.reshape(-1)
    rest, usable = np.flatnonzero(~known), known & np.isfinite(flat)
    if rest.size == 0 or usable.sum() < 6:  # a quadratic has six coefficients
        return Proposal(values, _scale(flat[usable], clip).clip, rest)
    sample = flat[usable]
    mean, error = _predict(places[usable], sample, places[rest], _scale(sample, clip))
    missing = _missing(places, flat, known, rest)
    flat[rest] = np.where(missing.inside, missing.value, mean)
    scale = _scale(flat[np.isfinite(flat)], clip, low=float(sample.min()))
    # How far the drawn value may drop; that it may rise as much is the same where it is not cut.
    drawn = np.maximum(0, np.minimum(mean, scale.top) - (mean - error))
    drawn[missing.inside] = 0
    visible = np.minimum(mean - error, missing.lowest_near) < scale.top
    drawn[missing.at_border & visible] = np.inf
    wrong = drawn > tolerance * scale.range / SAFETY
    wanted = rest[_spread(places[known], places[rest], np.where(wrong, drawn, 0))]
    if wanted.size and rest.size < (1 - GIVE_UP) * flat.size:
        wanted = rest
    return Proposal(flat.reshape(values.shape), scale.clip, np.sort(wanted))


def interpolate(values: Floats, known: Bools) -> Floats:
    """A metric at the points that are not known, within the range of those that are."""
    places, flat, known = _places(values.shape), values.reshape(-1).copy(), known.reshape(-1)
    usable = known & np.isfinite(flat)
    if usable.any() and not known.all():
        around = _neighborhoods(places[usable], places[~known])
        mean = (_kriging(around, _once).weights * flat[usable][around.indices]).sum(axis=1)
        flat[~known] = mean.clip(flat[usable].min(), flat[usable].max())
    filled: Floats = flat.reshape(values.shape)
    return filled


def _places(shape: tuple[int, ...]) -> Floats:
    """The points in the unit square, shape (points, 2)."""
    cells = np.array([max(count - 1, 1) for count in shape])
    places: Floats = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=-1) / cells
    return places


def _scale(values: Floats, clip: float | None, low: float | None = None) -> _Scale:
    if values.size == 0:
        return _Scale(0.0, 1.0, 1.0)
    low = float(values.min()) if low is None else low
    given, clip = clip, float(np.median(values)) if clip is None else min(clip, values.max())
    if not clip > low:  # a flat surface, or one wholly above the clip
        clip = low + (abs(low) or 1.0)
    margin = MARGIN * (clip - low) if given is None else 0.0
    return _Scale(low, clip, clip + margin)


def _missing(places: Floats, flat: Floats, known: Bools, rest: NDArray[np.int64]) -> _Missing:
    usable = known & np.isfinite(flat)
    to_usable, three = _nearest(places[usable], places[rest], 3)
    lowest = flat[usable][three].min(axis=1)
    lost = known & ~usable
    if not lost.any():
        nowhere = np.zeros(len(rest), bool)
        return _Missing(nowhere, np.full(len(rest), np.nan), nowhere, lowest)
    to_lost, nearest = _nearest(places[lost], places[rest], 1)
    near, far = to_usable[:, 0], to_lost[:, 0]
    return _Missing(
        inside=far < near,
        value=flat[lost][nearest[:, 0]],
        at_border=_comparable(far, near, places) & _comparable(near, far, places),
        lowest_near=lowest,
    )


def _comparable(distance: Floats, other: Floats, places: Floats) -> Bools:
    """Whether ``distance`` is hardly more than ``other``, on the scale of the grid."""
    cell = 1 / (np.sqrt(len(places)) - 1)
    comparable: Bools = distance < 1.6 * other + 1.5 * cell
    return comparable


def _predict(
    places: Floats, values: Floats, targets: Floats, scale: _Scale
) -> tuple[Floats, Floats]:
    """The surface at the targets and the standard error of each, by each one's best model."""
    blocks = [
        _predict_block(places, values, block, scale)
        for block in np.array_split(targets, -(-len(targets) // BLOCK))
    ]
    mean, error = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return mean, error


def _predict_block(
    places: Floats, values: Floats, targets: Floats, scale: _Scale
) -> tuple[Floats, Floats]:
    around = _neighborhoods(places, targets)
    above = (np.minimum(values, scale.low + HIGHEST * scale.range) - scale.low) / scale.range
    fits = []
    for kernel in (_once, _twice):
        kriging = _kriging(around, kernel)
        fits.append(_fit(kriging, around, above[around.indices]))
        fits.append(_fit_logarithm(kriging, around, above[around.indices]))
    means, errors, residuals = (np.stack(parts) for parts in zip(*fits, strict=True))
    best = residuals.argmin(axis=0), np.arange(len(targets))
    return scale.low + scale.range * means[best], scale.range * errors[best]


def _neighborhoods(places: Floats, targets: Floats) -> _Neighborhoods:
    count = min(NEIGHBORS, len(places))
    distances, indices = _nearest(places, targets, count)
    radius = distances[:, -1:]
    offsets = (places[indices] - targets[:, None]) / radius[..., None]
    weights = np.exp(-((distances / radius / NEAR) ** 2) / 2)
    return _Neighborhoods(indices, offsets, weights / weights.sum(axis=1, keepdims=True))


def _nearest(places: Floats, targets: Floats, count: int) -> tuple[Floats, NDArray[np.int64]]:
    """Distances and indices of the nearest places, each of shape (targets, count)."""
    distances, indices = cKDTree(places).query(targets, k=np.arange(1, count + 1))
    return np.asarray(distances, np.float64), np.asarray(indices, np.int64)


def _kriging(around: _Neighborhoods, kernel: Callable[[Floats], Floats]) -> _Kriging:
    u, v = around.offsets[..., 0], around.offsets[..., 1]
    apart = np.hypot(u[:, :, None] - u[:, None], v[:, :, None] - v[:, None])
    quadratic = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)
    covariance = kernel(apart)
    covariance += QUADRATIC_VARIANCE * (quadratic @ quadratic.transpose(0, 2, 1))
    covariance += NUGGET * np.eye(u.shape[1])
    inverse = np.asarray(np.linalg.inv(covariance), np.float64)
    # At the target the quadratic's terms are 1, 0, 0, 0, 0, 0.
    with_target = kernel(np.hypot(u, v)) + QUADRATIC_VARIANCE
    weights: Floats = (inverse @ with_target[..., None])[..., 0]
    variance = 1 + QUADRATIC_VARIANCE - (weights * with_target).sum(axis=1)
    return _Kriging(inverse, weights, np.sqrt(np.maximum(variance, 0)))


def _once(distance: Floats) -> Floats:
    """The Matérn kernel of order 3/2: once differentiable surfaces."""
    scaled = np.sqrt(3) / LENGTH * distance
    covariance: Floats = (1 + scaled) * np.exp(-scaled)
    return covariance


def _twice(distance: Floats) -> Floats:
    """The Matérn kernel of order 5/2: twice differentiable surfaces."""
    scaled = np.sqrt(5) / LENGTH * distance
    covariance: Floats = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return covariance


def _fit(kriging: _Kriging, around: _Neighborhoods, values: Floats) -> tuple[Floats, ...]:
    """Mean, standard error, and the root mean square residual of the neighbors."""
    mean, error, residuals = _fit_each(kriging, around, values)
    return mean, error, _near(around, residuals**2)


def _fit_logarithm(kriging: _Kriging, around: _Neighborhoods, values: Floats) -> tuple[Floats, ...]:
    """The same of a fit to the logarithm of one more than the values."""
    mean, error, residuals = _fit_each(kriging, around, np.log1p(values))
    mean, error = np.minimum(mean, 50), np.minimum(error, 50)  # exp does not overflow
    return (
        np.expm1(mean),
        np.exp(mean) * np.expm1(error),
        _near(around, (residuals * (1 + values)) ** 2),
    )


def _fit_each(kriging: _Kriging, around: _Neighborhoods, values: Floats) -> tuple[Floats, ...]:
    """Mean, standard error, and the residual of each neighbor predicted from the others."""
    center = values.mean(axis=1, keepdims=True)
    dual = np.einsum("tij,tj->ti", kriging.inverse, values - center)
    precision = np.einsum("tii->ti", kriging.inverse)
    mean = center[:, 0] + (kriging.weights * (values - center)).sum(axis=1)
    roughness = dual**2 / precision
    # An average misses a kink that only a few of the neighbors feel.
    worst = (around.weights * roughness).max(axis=1) / around.weights.max(axis=1)
    error = kriging.deviation * np.maximum(_near(around, roughness), np.sqrt(worst / 2))
    return mean, error, dual / precision


def _near(around: _Neighborhoods, squares: Floats) -> Floats:
    mean: Floats = np.sqrt((around.weights * squares).sum(axis=1))
    return mean


def _spread(known: Floats, targets: Floats, errors: Floats) -> NDArray[np.int64]:
    """The targets with the largest errors, none close to another: they share their errors."""
    gaps, _ = _nearest(known, targets, 1)
    free, chosen = errors > 0, list[int]()
    for index in np.argsort(-errors, kind="stable"):
        if not errors[index] > 0 or len(chosen) >= max(8, (len(known) + len(targets)) // ROUNDS):
            break
        if free[index]:
            chosen.append(int(index))
            distance = np.sqrt(((targets - targets[index]) ** 2).sum(axis=1))
            free &= distance >= 0.7 * gaps[index, 0]
    return np.array(chosen, np.int64)
