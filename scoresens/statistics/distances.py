r"""Distances between laws: exact optimal transport on a grid and between samples, and its
approximations.

    W_2(p, q)^2 = min over couplings pi of p and q of E_pi |x - y|^2

is a linear program over pi, n^4 unknowns for histograms of n x n bins. On a grid its cost separates
into rows and columns: mass may go along its row, from (y, x) to (y, x'), and then along the column,
from (y, x') to (y', x'), without loss,

    |(y, x) - (y', x')|^2 = (x - x')^2 + (y - y')^2,

which leaves 2 n^3 unknowns (Auricchio et al. 2018). A halfway bin (y, x') is a target of the first
move and a source of the second, with some capacity `room`; a free arc from it to itself takes what
does not pass. So this is again a transport problem, between 2 n^2 sources and 2 n^2 targets. Mass
that two histograms have in common must not be cancelled: at a squared cost it may have to move.

POT solves it, not ott-jax: POT has an exact network simplex for any weights, and the distances of
interest are smaller than the blur of an entropic solution. Everything here runs on the host, in
float64, and is not differentiable.
"""

import functools
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Integer, Real
from scipy.sparse import coo_array
from scipy.spatial.distance import cdist

from scoresens import _checks
from scoresens.statistics.estimates import NORMAL_95, Estimate

BLOCK = 2**20  # samples binned at a time
PIVOTS = 1_000_000_000  # of the network simplex: no limit in practice
SINKHORN_STEPS = 50_000
SINKHORN_TOLERANCE = 1e-4  # the share of the mass that may be misplaced


@dataclass(frozen=True)
class Grid:
    """A square grid of points in the plane, from -half_width to half_width along each axis.

    Args:
        half_width: in units of x.
        bins: points along an axis; they are `2 half_width / (bins - 1)` apart.

    Raises:
        ValueError: if half_width is not positive, or bins not a whole number of at least 2.
    """

    half_width: float = 3.5
    bins: int = 64

    def __post_init__(self):
        _checks.positive("Grid.half_width", self.half_width)
        _whole("Grid.bins", self.bins, 2)

    @property
    def axis(self) -> Float[np.ndarray, " bins"]:
        """The coordinates of the points along either axis."""
        return np.linspace(-self.half_width, self.half_width, self.bins)

    @property
    def spacing(self) -> float:
        """The distance of neighbouring points."""
        return 2 * self.half_width / (self.bins - 1)


class Histogram(NamedTuple):
    """Samples counted at the nearest points of a grid, first index y, and how many were dropped."""

    counts: Int[np.ndarray, "bins bins"]
    dropped: int


class Floor(NamedTuple):
    """The mean and the standard deviation of what sampling alone puts between two draws."""

    mean: float
    std: float


def histogram(x: Float[ArrayLike, "M 2"], grid: Grid, *, clip: bool = False) -> Histogram:
    """The counts of samples in the plane at their nearest grid points.

    Args:
        x: `[M, 2]`, columns x and y.
        grid: where to count.
        clip: count samples outside of the grid in the bins at its edge; otherwise those with |x| or
            |y| >= half_width are dropped.

    Returns:
        Histogram: `counts [bins, bins]`, int64, first index y; `dropped`, which includes every
            sample with a NaN.

    Raises:
        ValueError: if x is not `[M, 2]` floating-point numbers.

    Notes:
        The working memory is that of 2^20 samples.

    Example:
        >>> import numpy as np
        >>> from scoresens.statistics.distances import Grid, histogram
        >>> histogram(np.array([[0.4, -0.9], [0.0, 7.0]]), Grid(half_width=1.0, bins=3))
        Histogram(counts=array([[0, 1, 0],
               [0, 0, 0],
               [0, 0, 0]]), dropped=1)
    """
    x = _floats("x", x)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"x must be samples in the plane [M, 2], got shape {x.shape}")
    counts = np.zeros(grid.bins**2, np.int64)
    for start in range(0, len(x), BLOCK):
        block = np.asarray(x[start : start + BLOCK], np.float64)
        if clip:
            block = np.clip(block[~np.isnan(block).any(1)], -grid.half_width, grid.half_width)
        else:
            block = block[(np.abs(block) < grid.half_width).all(1)]
        columns, rows = np.rint((block.T + grid.half_width) / grid.spacing).astype(np.int64)
        counts += np.bincount(rows * grid.bins + columns, minlength=counts.size)
    return Histogram(counts.reshape(grid.bins, grid.bins), len(x) - int(counts.sum()))


def wasserstein_of_histograms(
    a: Real[ArrayLike, "bins bins"], b: Real[ArrayLike, "bins bins"], grid: Grid
) -> float:
    """The exact W_2 between two histograms on one grid, each taken to mass 1.

    Args:
        a, b: `[bins, bins]`, counts or weights, first index y.
        grid: what they were counted on.

    Returns:
        W_2, in units of x: not its square.

    Raises:
        ValueError: if a or b does not fit the grid, has a negative entry, NaN or infinity, or is 0.
        FloatingPointError: if the network simplex does not end.
        ImportError: without POT.

    Notes:
        Finite samples bias it: two draws of one law are not 0 apart (`sampling_floor`). Two
        64 x 64 histograms take 0.5 s and 0.13 GB, against 10 s and 0.8 GB by all pairs of bins;
        two of 128 x 128 a minute. Rounding leaves 1e-8 spacings between equal histograms.

    References:
        Auricchio, Bassetti, Gualandi, Veneroni 2018, arXiv 1805.07416.
        Bonneel, van de Panne, Paris, Heidrich 2011, doi 10.1145/2070781.2024192 (the simplex).
    """
    a, b = _masses("a", a, grid), _masses("b", b, grid)
    room = np.minimum(a.sum(1)[:, None], b.sum(0)[None, :])  # (y, x') sees no more than this
    sources = np.concatenate([a.ravel(), room.ravel()])
    targets = np.concatenate([room.ravel(), b.ravel()])
    _, log = _strictly(
        "compare on a coarser grid",
        _pot().emd,
        sources,
        targets,
        _moves(grid.bins),
        numItermax=PIVOTS,
        center_dual=False,
        log=True,
    )
    return grid.spacing * float(np.sqrt(max(log["cost"], 0.0)))


def resampled(
    counts: Integer[ArrayLike, "bins bins"], rng: np.random.Generator
) -> Int[np.ndarray, "bins bins"]:
    """As many samples again, drawn from the histogram itself: one resample of the bootstrap.

    Args:
        counts: `[bins, bins]`, whole numbers.
        rng: of the draw; it is advanced.

    Raises:
        ValueError: if counts are no whole numbers, one is negative, or all are 0.
    """
    counts = _counts("counts", counts)
    return _draw(counts / counts.sum(), int(counts.sum()), rng)


def wasserstein_interval(
    a: Integer[ArrayLike, "bins bins"],
    b: Integer[ArrayLike, "bins bins"],
    grid: Grid,
    *,
    resamples: int = 8,
    seed: int = 0,
) -> Estimate:
    """W_2 between two histograms of samples, with 1.96 standard errors to either side.

    The standard error is the standard deviation over resamples of both histograms. Their mean is
    not used: resampling adds to W_2 once more what sampling had added already.

    Args:
        a, b, grid: as in `wasserstein_of_histograms`, with counts of independent samples.
        resamples: at least 2. Of r, the standard error is known within one part in sqrt(2 (r - 1)).
        seed: of the resamples.

    Returns:
        Estimate: `value`, `low` (at least 0) and `high`, in units of x.

    Raises:
        ValueError, FloatingPointError, ImportError: as `wasserstein_of_histograms`; counts that are
            no whole numbers; fewer than 2 resamples.

    Notes:
        This covers what another draw of the same sizes would have given, not the distance of the
        laws: W_2 between finite samples is too large on average, by at most about the
        `sampling_floor`, and nothing is taken off for it. Where the value is near the floor, the
        interval means little. Of samples that were dropped, neither knows.

        Costs `resamples + 1` exact solutions.
    """
    _whole("resamples", resamples, 2)
    a, b = _counts("a", a), _counts("b", b)
    value = wasserstein_of_histograms(a, b, grid)
    rng = np.random.default_rng(seed)
    redrawn = [
        wasserstein_of_histograms(resampled(a, rng), resampled(b, rng), grid)
        for _ in range(resamples)
    ]
    reach = NORMAL_95 * float(np.std(redrawn, ddof=1))
    return Estimate(value, max(value - reach, 0.0), value + reach)


def sampling_floor(
    counts: Integer[ArrayLike, "bins bins"],
    other_total: int | np.integer,
    grid: Grid,
    *,
    draws: int = 4,
    seed: int = 0,
) -> Floor:
    """What W_2 would be between two histograms of one law: of as many samples as `counts`, and of
    `other_total`.

    A measured distance near it is no evidence of two laws.

    Args:
        counts: `[bins, bins]`, whole numbers; the law is their histogram.
        other_total: how many samples the other histogram has.
        grid: what they were counted on.
        draws: pairs of histograms to draw, at least 2.
        seed: of the draws.

    Returns:
        Floor: the `mean` of W_2 over the pairs, in units of x, and its `std` from pair to pair.

    Raises:
        ValueError, FloatingPointError, ImportError: as `wasserstein_of_histograms`; counts that are
            no whole numbers, an `other_total` below 1, fewer than 2 draws.

    Notes:
        Costs `draws` exact solutions. It falls slowly, about as the fourth root of the number of
        samples: a surplus in one place has to come from a neighbouring bin at least.
    """
    _whole("draws", draws, 2)
    _whole("other_total", other_total, 1)
    total, law = int(_counts("counts", counts).sum()), _masses("counts", counts, grid)
    rng = np.random.default_rng(seed)
    found = [
        wasserstein_of_histograms(_draw(law, total, rng), _draw(law, int(other_total), rng), grid)
        for _ in range(draws)
    ]
    return Floor(float(np.mean(found)), float(np.std(found, ddof=1)))


def wasserstein(x: Float[ArrayLike, "M *shape"], y: Float[ArrayLike, "N *shape"]) -> float:
    """The exact W_2 between two sets of samples, all of one set weighing the same.

    Args:
        x: `[M, *shape]`.
        y: `[N, *shape]`; N may differ from M.

    Returns:
        W_2, in units of x: not its square.

    Raises:
        ValueError: if the shapes of a sample differ, a set is empty, or an entry is NaN or
            infinite.
        FloatingPointError: if the network simplex does not end.
        ImportError: without POT.

    Notes:
        About 40 M N bytes: 7 s and 1 GB for 5000 samples a side. In the plane, millions of samples
        are better counted (`histogram`). Rounding leaves about 1e-8 of the largest distance.
        Finite samples bias it, the more so in more dimensions: by order M^(-1/d) for d > 4.

    References:
        Bonneel, van de Panne, Paris, Heidrich 2011, doi 10.1145/2070781.2024192 (the simplex).
        Fournier & Guillin 2015, arXiv 1312.2128 (the bias).
    """
    x, y = _pair(x, y)
    cost, scale = _costs(x, y)
    squared, _, _ = _transport(cost)
    return float(np.sqrt(scale * max(squared, 0.0)))


def transport_map(
    x: Float[ArrayLike, "M *shape"], y: Float[ArrayLike, "N *shape"]
) -> Float[np.ndarray, "M *shape"]:
    """Where exact transport takes each sample of x: the mean of its targets in y (the barycentric
    projection of the coupling of `wasserstein`).

    Args:
        x, y: as in `wasserstein`.

    Raises:
        ValueError, FloatingPointError, ImportError: as `wasserstein`.

    Notes:
        As `wasserstein`.

    Example:
        >>> import numpy as np
        >>> from scoresens.statistics.distances import transport_map
        >>> transport_map(np.array([[0.0], [1.0]]), np.array([[5.0], [6.0], [1.0], [2.0]]))
        array([[1.5],
               [5.5]])
    """
    shape = np.shape(x)
    x, y = _pair(x, y)
    cost, _ = _costs(x, y)
    plan = _strictly("take fewer samples", _pot().emd, *_uniform(cost), cost, numItermax=PIVOTS)
    return (plan @ y * len(x)).reshape(shape)


def sliced_wasserstein(
    x: Float[ArrayLike, "M *shape"],
    y: Float[ArrayLike, "N *shape"],
    *,
    directions: int = 256,
    seed: int = 0,
) -> float:
    """The sliced W_2: root mean square of the W_2 between projections on random directions.

    `SW_2(p, q)^2 = E_u W_2(u.x, u.y)^2` with u uniform on the unit sphere of d = prod(shape)
    dimensions; in one dimension it is W_2 itself.

    Args:
        x, y: as in `wasserstein`.
        directions: how many; the relative error of the square falls as 1 / sqrt(directions).
        seed: of the directions. One seed gives the same directions to every pair of laws, which
            makes distances comparable.

    Returns:
        SW_2, in units of x: not its square. At most W_2 / sqrt(d) with all directions.

    Raises:
        ValueError: as `wasserstein`; directions below 1.
        ImportError: without POT.

    Notes:
        A sort a direction and set, one direction at a time: half a second for a million
        samples a side.

    References:
        Bonneel, Rabin, Peyré, Pfister 2015, doi 10.1007/s10851-014-0506-3.
    """
    _whole("directions", directions, 1)
    x, y = _pair(x, y)
    units = np.random.default_rng(seed).normal(size=(directions, x.shape[1]))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    along = _pot().emd2_1d  # a sort and a sweep in C: four times faster than POT's own slicing
    squared = [along(x @ u, y @ u, metric="sqeuclidean", dense=False) for u in units]
    return float(np.sqrt(np.mean(squared)))


def sinkhorn_divergence(
    x: Float[ArrayLike, "M *shape"], y: Float[ArrayLike, "N *shape"], *, epsilon: float
) -> float:
    """The Sinkhorn divergence between two sets of samples: entropic transport without its bias.

    `S(p, q) = OT(p, q) - OT(p, p) / 2 - OT(q, q) / 2`, with
    `OT(p, q) = min over couplings of E |x - y|^2 + epsilon KL(pi || p q)`. It goes from `W_2^2`
    (epsilon to 0) to the squared distance of the means (epsilon to infinity).

    Args:
        x, y: as in `wasserstein`.
        epsilon: of the entropy, in squared units of x.

    Returns:
        S, in **squared** units of x. It is >= 0, and 0 for equal laws, but for an error of either
        sign, which a root would hide.

    Raises:
        ValueError: as `wasserstein`; epsilon not positive.
        FloatingPointError: if an iteration still misplaces 1e-4 of the mass after 50,000 steps, as
            it may where epsilon is far below the squared distances of neighbours.
        ImportError: without POT.

    Notes:
        Stabilised iterations that start from the potentials of exact transport, at which no row of
        the kernel vanishes, however small epsilon is. The value is right to about 1e-4 epsilon
        (measured). 1000 samples a side take 2 to 10 s: not less than `wasserstein`, which samples
        bias more.

    References:
        Genevay, Peyré, Cuturi 2018, arXiv 1706.00292.
        Feydy, Séjourné, Vialard, Amari, Trouvé, Peyré 2019, arXiv 1810.08278.
    """
    _checks.positive("epsilon", epsilon)
    x, y = _pair(x, y)
    cost, scale = _costs(x, y)
    _, *potentials = _transport(cost)
    value = scale * _entropic(cost, epsilon / scale, potentials)
    for own in (x, y):
        cost, scale = _costs(own, own)
        potentials = [np.zeros(len(own))] * 2  # nothing moves
        value -= scale * _entropic(cost, epsilon / scale, potentials) / 2
    return value


def _transport(cost) -> tuple[float, np.ndarray, np.ndarray]:
    """The least cost between uniform weights, and the potentials of its dual problem."""
    value, log = _strictly(
        "take fewer samples",
        _pot().emd2,
        *_uniform(cost),
        cost,
        numItermax=PIVOTS,
        log=True,
    )
    return float(value), log["u"], log["v"]


def _entropic(cost, epsilon, potentials) -> float:
    """min over couplings of E cost + epsilon KL(pi || p q), by its dual problem, for uniform p, q.

    At potentials (f, g) the coupling is `exp((f + g - cost) / epsilon)` in POT, where the entropy
    is relative to the counting measure: relative to p q the value gains epsilon log(M N).
    """
    _, log = _strictly(
        f"raise epsilon from {epsilon:.2g} of the largest squared distance, or use wasserstein",
        _pot().sinkhorn,
        *_uniform(cost),
        cost,
        epsilon,
        method="sinkhorn_stabilized",
        numItermax=SINKHORN_STEPS,
        stopThr=SINKHORN_TOLERANCE / np.sqrt(cost.shape[1]),  # of a root of a sum of squares
        warmstart=tuple(potentials),
        log=True,
    )
    return float(np.mean(log["alpha"]) + np.mean(log["beta"]) + epsilon * np.log(cost.size))


def _costs(x, y) -> tuple[Float[np.ndarray, "M N"], float]:
    """Squared distances as shares of the largest, and that: POT's tolerances are absolute."""
    cost = cdist(x, y, "sqeuclidean")
    scale = float(cost.max())
    if not np.isfinite(scale):
        raise ValueError("squared distances between the samples overflow: rescale x and y")
    if scale == 0:
        return cost, 1.0
    cost /= scale
    return cost, scale


@functools.lru_cache(maxsize=2)
def _moves(bins: int) -> coo_array:
    """The squared lengths, in spacings, of moves along rows, along columns, and of none.

    `[2 bins^2, 2 bins^2]`: from the bins of the first histogram and from halfway bins, to halfway
    bins and to the bins of the second histogram.
    """
    first, second, new = np.meshgrid(*[np.arange(bins)] * 3, indexing="ij")
    size = bins**2
    halfway = np.arange(size)
    origin = first * bins + second
    sources = [origin, size + origin, size + halfway]
    targets = [first * bins + new, size + new * bins + second, halfway]
    costs = [(new - second) ** 2, (new - first) ** 2, 0 * halfway]
    rows, columns, cost = (
        np.concatenate([v.ravel() for v in p]) for p in (sources, targets, costs)
    )
    return coo_array((cost.astype(np.float64), (rows, columns)), shape=(2 * size, 2 * size))


def _pot() -> Any:
    """POT, which is imported when the first distance is asked for: it takes two seconds."""
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "distances between laws need POT, an optional dependency: install scoresens[gap]"
        ) from error
    return ot


def _strictly(advice: str, function, *args, **kwargs):
    """What POT's function returns, where POT does not warn that it is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return function(*args, **kwargs)
        except (UserWarning, RuntimeWarning) as warning:
            raise FloatingPointError(f"POT did not converge ({warning}): {advice}") from None


def _draw(law, total, rng):
    return rng.multinomial(total, law.ravel()).reshape(law.shape)


def _uniform(cost):
    """The weights of the rows and of the columns."""
    return [np.full(size, 1 / size) for size in cost.shape]


def _masses(name: str, weights, grid: Grid) -> Float[np.ndarray, "bins bins"]:
    """A histogram of the grid, of mass 1."""
    weights = np.asarray(weights)
    if weights.shape != (grid.bins, grid.bins):
        raise ValueError(
            f"{name} must have shape {(grid.bins, grid.bins)} to match the grid, "
            f"got {weights.shape}; count both histograms on one grid"
        )
    weights = weights.astype(np.float64)
    _checks.finite(name, weights)
    _nowhere_negative(name, weights)
    return weights / weights.sum()


def _counts(name: str, counts) -> np.ndarray:
    counts = np.asarray(counts)
    if not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            f"{name} holds {counts.dtype} where whole numbers belong: how many samples there are "
            "decides how far a draw may stray; give counts, not weights"
        )
    _nowhere_negative(name, counts)
    return counts


def _nowhere_negative(name, weights):
    if weights.size and weights.min() < 0:
        raise ValueError(f"{name} must be 0 or greater, its smallest entry is {weights.min()}")
    if not weights.any():
        raise ValueError(f"{name} is 0 everywhere: there is no mass to move; check its grid")


def _pair(x, y) -> tuple[Float[np.ndarray, "M d"], Float[np.ndarray, "N d"]]:
    """Two sets of samples as rows of float64."""
    x, y = _samples("x", x), _samples("y", y)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"x and y must hold samples of one shape, got {x.shape[1:]} and {y.shape[1:]}"
        )
    return x.reshape(len(x), -1), y.reshape(len(y), -1)


def _samples(name: str, x) -> np.ndarray:
    x = _floats(name, x).astype(np.float64)
    if x.ndim < 2 or not x.size:
        raise ValueError(
            f"{name} must be a batch [M, *shape] with M >= 1, got shape {x.shape}; "
            "add a trailing axis to numbers"
        )
    if bad := int(np.sum(~np.isfinite(x))):
        raise ValueError(
            f"{name} has {bad} entries that are NaN or infinite; remove or repair them first"
        )
    return x


def _floats(name: str, x) -> np.ndarray:
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"{name} holds {x.dtype} where floating-point numbers belong; convert it first, "
            f"for example {name}.astype(np.float32)"
        )
    return x


def _whole(name: str, value: int | np.integer, least: int) -> None:
    if not (isinstance(value, int | np.integer) and value >= least):
        raise ValueError(f"{name} must be a whole number >= {least}, got {value}")
