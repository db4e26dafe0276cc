"""A smooth curve through values that are known to some error each."""

import math
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float


def smoothed(
    at: Float[np.ndarray, "seen"],
    values: Float[np.ndarray, "seen"],
    errors: Float[np.ndarray, "seen"],
    to: Float[np.ndarray, "wanted"],
    lengths: tuple[float, float],
) -> tuple[Float[np.ndarray, "wanted"], Float[np.ndarray, "wanted"]]:
    """Mean and deviation of a Gaussian process about the values' weighed mean, with the errors as its noise.

    Parameters
    ----------
    at, values, errors : arrays
        Where each value was found, the value, and its standard error.
    to : array
        Where the curve is wanted.
    lengths : tuple of float
        Between these the length scale is chosen, by marginal likelihood.

    Examples
    --------
    >>> at = np.linspace(0.0, 1.0, 50)
    >>> mean, deviation = smoothed(at, at**2, np.full(50, 0.01), np.array([0.5]), lengths=(0.05, 10.0))
    >>> f"{mean.item():.2f}", bool(deviation < 0.005)
    ('0.25', True)
    """
    # its import takes a third of the start of a job, and most jobs smooth nothing
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    middle = np.average(values, weights=errors**-2.0)
    kernel = ConstantKernel(1.0) * RBF(math.sqrt(lengths[0] * lengths[1]), length_scale_bounds=lengths)
    noise: Any = errors**2  # a number or one for each: its annotation knows only the first
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # that a length is at an end of what is allowed
        process = GaussianProcessRegressor(kernel, alpha=noise).fit(at[:, None], values - middle)
    mean, deviation = process.predict(to[:, None], return_std=True)
    return middle + np.asarray(mean), np.asarray(deviation)
