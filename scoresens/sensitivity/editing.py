r"""Real images under changed data.

    image  --invert, the model as it is-->  noise and route  --counterfactual-->  edited image

What the model makes the image from is held fixed, and the data change: at mass 0 the way back ends
at the image, and the derivative there is `sample_sensitivity` of the same noise and route.
"""

from jaxtyping import Array, ArrayLike, Float, Key, PRNGKeyArray

from scoresens.flow.inversion import invert
from scoresens.flow.routes import Flow, Route
from scoresens.flow.solve import Solve
from scoresens.flow.traces import Hutchinson, TraceEstimator
from scoresens.laws.learned import Base
from scoresens.laws.measures import Measure
from scoresens.laws.perturbations import Perturbation
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Pair, Score
from scoresens.sensitivity.counterfactual import Counterfactual, counterfactual


def edit(
    process: Process,
    score: Score,
    perturbation: Perturbation | Pair,
    images: Float[Array, "M *shape"],
    *,
    mass: Scalar | Float[ArrayLike, " E"],
    base: Base | Pair = None,
    trace: TraceEstimator = Hutchinson(1),
    prior: Measure | Pair | None = None,
    route: Route = Flow(),
    key: PRNGKeyArray | Key[Array, " M"] | None = None,
    solve: Solve = Solve(),
) -> Counterfactual:
    """Given images, as the model would make them from the same noise had its data changed.

    Args:
        images: `[M, *shape]` data, taken to be at noise level `solve.tau_min`.
        route: `Flow()`, by which the image of mass 0 comes back up to the solver's error; or
            `Diffusion(key)`, by which it comes back to rounding (`invert`), and the kicks of its
            way are held fixed.
        (the others as in `counterfactual`)

    Returns:
        Counterfactual: `x [M, K, *shape]`, or `[M, E, K, *shape]` for a vector of masses.

    Raises:
        ValueError, FloatingPointError: as `invert` and `counterfactual`.

    Notes:
        Cost: that of `invert` and of `counterfactual`. For its derivative at mass 0 give
        `sample_sensitivity` the noise and the route of `invert`, for attributions `attribute`.

    References:
        Nie et al. 2023, arXiv 2311.01410.
    """
    found = invert(process, score, images, route=route, solve=solve)
    return counterfactual(
        process, score, perturbation, found.noise,
        mass=mass, base=base, trace=trace, prior=prior, route=found.route, key=key, solve=solve,
    )  # fmt: skip
