"""Reading the arrays of a surface: the loss, or a metric, over a plane of parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .style import Arrays


def values_of(arrays: Arrays, of: str) -> NDArray[Any]:
    """The loss, or the metric of this name.

    Raises:
        ValueError: there is no such metric.
    """
    key = "values" if of == "loss" else f"metric_{of}"
    if key not in arrays:
        known = ["loss", *(name[7:] for name in arrays if name.startswith("metric_"))]
        raise ValueError(f"There is no {key!r} among the arrays: of is one of {', '.join(known)}.")
    return np.asarray(arrays[key], dtype=float)


def plane(
    arrays: Arrays, of: str = "loss"
) -> tuple[NDArray[Any], NDArray[Any], np.ma.MaskedArray[Any, Any]]:
    """The axes of a surface and its values, masked where they are not finite, or as good as.

    Raises:
        ValueError: there is no such metric, or the shapes do not fit each other.
    """
    alphas, betas, values = arrays["alphas"], arrays["betas"], values_of(arrays, of)
    if values.shape != (len(alphas), len(betas)) or min(values.shape) < 2:
        raise ValueError(
            f"A surface has values of shape (alphas, betas), at least 2 × 2: "
            f"got {values.shape} for {len(alphas)} alphas and {len(betas)} betas."
        )
    bad = ~(np.abs(values) < 1e100)  # larger ones are beyond what matplotlib draws contours of
    return alphas, betas, np.ma.MaskedArray(values, mask=bad)


def trajectory(arrays: Arrays) -> NDArray[Any] | None:
    """The path of training in the plane, if there is one.

    Raises:
        ValueError: it is not of shape (k, 2).
    """
    if "trajectory" not in arrays:
        return None
    path = np.asarray(arrays["trajectory"])
    if path.ndim != 2 or path.shape[1] != 2:
        raise ValueError(f"A trajectory has shape (k, 2), an α and a β each, not {path.shape}.")
    return path
