"""Principal components: the directions along which data vary most."""

import numpy as np
from jaxtyping import Float


def principal_components(x: Float[np.ndarray, "N *shape"], count: int) -> Float[np.ndarray, "P d"]:
    """The first principal components of data, unit vectors in float64; at most min(N, d).

    Notes:
        The singular vectors of the triangular factor of the centred data, which are those of the
        data: `O(N d^2)`.
    """
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    triangle = np.linalg.qr(flat - flat.mean(0), mode="r")
    return np.linalg.svd(triangle, full_matrices=False)[2][:count]
