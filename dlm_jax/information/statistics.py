"""Means of rows that come in clusters (documents), and how certain they are."""

import math

import numpy as np


def ratio(values, sizes, cluster):
    """Returns sum(values) / sum(sizes) and its standard error over clusters, by linearisation.

    Args:
      values, sizes: float64[N], one a row.
      cluster: int[N], rows of one document share a number.
    Returns:
      (float, float); the error is NaN where there is a single cluster.
    """
    _, index = np.unique(cluster, return_inverse=True)
    values, sizes = np.bincount(index, values), np.bincount(index, sizes)
    found = values.sum() / sizes.sum()
    count = len(values)
    if count < 2:
        return float(found), float("nan")
    residual = values - found * sizes
    variance = count / (count - 1) * np.sum(residual**2) / sizes.sum() ** 2
    return float(found), float(math.sqrt(variance))


def mean_and_covariance(values, cluster):
    """Returns the means of K columns and the covariance matrix of these means, clustered.

    Args:
      values: float64[N, K].
      cluster: int[N].
    Returns:
      float64[K], float64[K, K]; the covariance is NaN where there is a single cluster.
    """
    values = np.asarray(values, np.float64)
    _, index = np.unique(cluster, return_inverse=True)
    count = index.max() + 1
    mean = values.mean(axis=0)
    if count < 2:
        return mean, np.full((values.shape[1],) * 2, np.nan)
    residual = np.zeros((count, values.shape[1]))
    np.add.at(residual, index, values - mean)
    return mean, count / (count - 1) * residual.T @ residual / len(values) ** 2
