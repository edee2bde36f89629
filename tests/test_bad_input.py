"""Every wrong call says what was expected, what was got, and what to do."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoresens as ss

PROCESS, KEY = ss.VP(), jax.random.key(0)
POINTS = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
DATA = ss.Points(POINTS, bandwidth=0.3)
NOISE = jnp.ones((3, 2))
PIXEL = ss.functionals.pixel(0)
SHORT = ss.Solve(steps=2)
pytestmark = pytest.mark.usefixtures("unchecked_annotations")


def score(t, x):
    return -x


def loss(x=NOISE, **given):
    given = {"levels": jnp.ones(2), "key": KEY, **given}
    return ss.loss_sensitivity(PROCESS, score, DATA, x, **given)


def attribute(functional=PIXEL, score=score, data=DATA, **given):
    return ss.attribute(PROCESS, score, data, functional, NOISE, **{"solve": SHORT, **given})


def refuses(message, function, *args, error=ValueError, **kwargs):
    with pytest.raises(error, match=message):
        function(*args, **kwargs)


# ------------------------------------------------------------------ data and laws


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.ones((0, 2)), r"points must be a batch \[M, \*shape\] with M >= 1, got shape \(0, 2\)"),
        (np.ones(3), "add a leading axis"),
        (np.ones((3, 2), int), "points holds int64 where floating-point numbers belong; convert"),
        (np.ones((3, 2), np.uint8), "points holds uint8"),
        (np.array([[1.0, np.nan], [np.inf, 0.0]]), "points has 2 entries that are NaN or infinite"),
    ],
)
def test_points(points, message):
    refuses(message, ss.Points, points)
    refuses(message.replace("points", "new"), ss.add, points)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(4), r"weights must have shape \(5,\), got \(4,\)"),
        (np.ones(5, int), "weights holds int64"),
        (np.array([1.0, 1, -1, 1, 1]), "weights must be 0 or greater, its smallest entry is -1"),
        (np.array([1.0, 1, np.nan, 1, 1]), "weights has 1 entries that are NaN"),
        (np.array([1.0, 1, np.inf, 1, 1]), "weights has 1 entries that are NaN or infinite"),
        (np.zeros(5), "weights sums to 0"),
    ],
)
def test_weights(weights, message):
    refuses(message, ss.Points, POINTS, weights)
    row = message.replace(r"\(5,\), got \(4,\)", r"\(1, 5\), got \(1, 4\)")
    refuses(row, ss.reweight, DATA, weights)
    refuses(message, ss.GaussianMixture, weights, POINTS, jnp.ones(5))


@pytest.mark.parametrize("bandwidth", [-0.1, np.nan, np.inf])
def test_bandwidth(bandwidth):
    refuses("bandwidth must be a finite number, 0 or greater", ss.Points, POINTS, None, bandwidth)


@pytest.mark.parametrize(
    ("covariances", "message"),
    [
        (np.ones((5, 3)), r"covariances must have shape \(5,\), \(5, 2\) or \(5, 2, 2\)"),
        (np.full(5, -1.0), "negative variance, -1"),
        (np.full((5, 2), np.nan), "covariances has 10 entries"),
        (np.ones(5, int), "covariances holds int64"),
    ],
)
def test_covariances(covariances, message):
    refuses(message, ss.GaussianMixture, jnp.ones(5), POINTS, covariances)


def test_default_bandwidth_of_one_point():
    refuses("at least 2 points, got 1", ss.default_bandwidth, POINTS[:1])


def test_default_bandwidth_of_copies():
    refuses(
        "all 5 points are copies of one.*give them a bandwidth", ss.default_bandwidth, 0 * POINTS
    )


# ------------------------------------------------------------------ perturbations


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ([1, 3, 1, -2], r"indices \[1, 3\] are given twice or more"),
        ([5], r"index 5\.\.5 lies outside the data's 5 points"),
        ([0, -6], r"index -6\.\.0 lies outside"),
        ([0.5], "integer indices, got float64"),
        ([], "non-empty list of integer indices"),
        (np.zeros(5, bool), "empty set of points"),
        (np.ones(5, bool), "nothing would be left"),
        (np.ones(4, bool), r"mask must have shape \[5\] or \[K, 5\], got \(4,\)"),
    ],
)
def test_remove(which, message):
    refuses(message, ss.remove, DATA, which)


def test_remove_by_index_the_only_point_of_any_weight():
    data = ss.Points(POINTS, jnp.array([1.0, 0, 0, 0, 0]))
    refuses("nothing would be left", ss.remove, data, [0])


@pytest.mark.parametrize(
    ("verb", "given"),
    [
        (ss.sample_sensitivity, {"noise": NOISE}),
        (ss.score_sensitivity, {"t": 0.5, "x": NOISE}),
        (ss.counterfactual, {"noise": NOISE, "mass": 0.5}),
    ],
)
def test_bare_images_for_a_perturbation(verb, given):
    message = "perturbation must be made by add, remove, reweight, replace or move"
    refuses(message, verb, PROCESS, score, perturbation=POINTS, base=DATA, **given)


def test_replace():
    refuses("lies outside", ss.replace, DATA, [7], POINTS[:1])
    refuses("2 indices and 1 new images", ss.replace, DATA, [0, 1], POINTS[:1])
    refuses(r"new must have shape \[M, 2\]", ss.replace, DATA, [0], jnp.ones((1, 3)))
    refuses(r"indices \[2\] are given twice", ss.replace, DATA, [2, 2], POINTS[:2])


def test_move():
    refuses("lies outside", ss.move, DATA, [7], POINTS[:1])
    refuses(r"indices \[4\] are given twice", ss.move, DATA, [4, -1], POINTS[:2])
    refuses("move got 2 points and 1 directions", ss.move, DATA, [0, 1], POINTS[:1])
    refuses(r"direction must have shape \[M, 2\]", ss.move, DATA, [0], jnp.ones((1, 3)))
    refuses("direction holds int64", ss.move, DATA, [0], np.ones((1, 2), int))
    refuses("direction has 1 entries", ss.move, DATA, [0], np.array([[0.0, np.nan]]))


def test_sums_and_multiples_of_perturbations():
    refuses("must be made by add, remove", lambda: ss.add(POINTS) + POINTS)  # pyright: ignore[reportOperatorIssue]
    refuses("factor has 1 entries that are NaN", lambda: np.nan * ss.add(POINTS))
    refuses("5 directions of shape .* 1 directions", lambda: ss.add(POINTS) + ss.add(DATA))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (ss.Points(POINTS + 1), "base holds other points"),
        (ss.Points(POINTS[:3]), "base holds other points"),
        (ss.GaussianMixture(jnp.ones(5), POINTS, jnp.ones(5)), "base=the same Points"),
        (POINTS, "base must be a measure"),
    ],
)
def test_base_of_an_edit(base, message):
    change = ss.remove(DATA, [4])
    refuses(message, ss.counterfactual, PROCESS, score, change, NOISE, mass=0.5, base=base)


@pytest.mark.parametrize("verb", [ss.sample_sensitivity, ss.score_sensitivity])
def test_base_that_is_no_measure(verb):
    place = (0.5, NOISE) if verb is ss.score_sensitivity else (NOISE,)
    refuses("base must be a measure", verb, PROCESS, score, ss.add(POINTS), *place, base=POINTS)


def test_base_that_is_a_model():
    """Its log-density is known along paths alone."""
    base = ss.Learned(PROCESS, score, (2,))
    for verb, given in ((ss.sample_sensitivity, {}), (ss.counterfactual, {"mass": 0.5})):
        message = "base must be a measure, such as Points.images., got .*Learned"
        refuses(message, verb, PROCESS, score, ss.add(POINTS), NOISE, base=base, **given)


@pytest.mark.parametrize("mass", [1.2, -1.0001])
def test_mass_outside_its_range(mass):
    message = rf"mass must lie in \[-1, 1\], got {mass}"
    for base in (DATA, None):
        change, given = ss.add(POINTS), {"base": base, "trace": ss.Exact()}
        refuses(message, ss.counterfactual, PROCESS, score, change, NOISE, mass=mass, **given)
    some = [mass, 0.5]
    refuses(message, ss.counterfactual, PROCESS, score, change, NOISE, mass=some, base=DATA)


@pytest.mark.parametrize(
    ("change", "mass"),
    [
        (2 * ss.remove(DATA, [4]), 0.75),
        (ss.replace(DATA, [4], POINTS[:1]) + ss.remove(DATA, [4]), 0.75),
        (2 * ss.add(POINTS[:1]), 0.75),
        (ss.reweight(DATA, np.array([1.0, 0, 0, 0, 0])), -1.0),
    ],
)
def test_more_is_taken_than_there_is(change, mass):
    message = f"mass {mass} takes more than there is: a weight of the changed data becomes"
    refuses(message, ss.counterfactual, PROCESS, score, change, NOISE, mass=mass, base=DATA)


def test_masses_of_two_axes():
    message = r"mass must be a number or a vector \[E\], got shape \(1, 1\)"
    for mass in (np.ones((1, 1)), np.ones((0,))):
        message = message.replace(r"\(1, 1\)", r"\(\d,")
        given = {"mass": mass, "base": DATA}
        refuses(message, ss.counterfactual, PROCESS, score, ss.add(POINTS), NOISE, **given)


@pytest.mark.parametrize("mass", [np.nan, np.inf])
def test_mass_that_is_no_number(mass):
    change = ss.add(POINTS)
    refuses("mass", ss.counterfactual, PROCESS, score, change, NOISE, mass=mass, base=DATA)


# ------------------------------------------------------------------ paths

VERBS = {
    "sample_ode": lambda p, s, x: ss.sample_ode(p, s, x, solve=SHORT),
    "encode": lambda p, s, x: ss.encode(p, s, x, solve=SHORT),
    "sample_sde": lambda p, s, x: ss.sample_sde(p, s, x, key=KEY, solve=SHORT),
    "log_density_along": lambda p, s, x: ss.log_density_along(
        p, s, score, x, trace=ss.Exact(), solve=SHORT
    ),
    "sample_sensitivity": lambda p, s, x: ss.sample_sensitivity(
        p, s, ss.add(POINTS), x, base=DATA, solve=SHORT
    ),
    "score_sensitivity": lambda p, s, x: ss.score_sensitivity(
        p, s, ss.add(POINTS), 0.5, x, base=DATA
    ),
    "counterfactual": lambda p, s, x: ss.counterfactual(
        p, s, ss.add(POINTS), x, mass=0.5, base=DATA, solve=SHORT
    ),
    "attribute": lambda p, s, x: ss.attribute(p, s, DATA, PIXEL, x, solve=SHORT),
    "loss_sensitivity": lambda p, s, x: ss.loss_sensitivity(
        p, s, DATA, x, levels=jnp.ones(2), key=KEY, solve=SHORT
    ),
}
FREE = ("sample_ode", "encode", "sample_sde", "log_density_along")  # of any shape


@pytest.fixture(params=VERBS)
def verb(request):
    return VERBS[request.param]


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (np.ones((0, 2)), r"must be a batch \[M, \*shape\] with M >= 1"),
        (np.ones(2), "add a leading axis"),
        (np.ones((3, 2), int), "holds int64 where floating-point"),
        (np.array([[1.0, np.nan]]), "has 1 entries that are NaN or infinite"),
    ],
)
def test_noise(verb, noise, message):
    refuses(message, verb, PROCESS, score, noise)


@pytest.mark.parametrize("name", [name for name in VERBS if name not in FREE])
def test_noise_unlike_the_data(name):
    refuses(r"must have shape \[M, 2\] to match", VERBS[name], PROCESS, score, jnp.ones((3, 4)))


def test_score_of_another_shape(verb):
    message = r"score\(t, x\) must return an array of x's shape \(2,\) for one sample, got \(1,\)"
    refuses(message, verb, PROCESS, lambda t, x: x[:1], NOISE)


def test_score_of_a_tuple(verb):
    refuses("got tuple", verb, PROCESS, lambda t, x: (x, x), NOISE)


def test_score_of_integers(verb):
    refuses("must return floating-point numbers, got int", verb, PROCESS, _integers, NOISE)


def _integers(t, x):
    return x.astype(int)


def test_score_that_is_no_function(verb):
    refuses(r"must be a function \(t, x\)", verb, PROCESS, 3.0, NOISE)


def test_not_a_process(verb):
    refuses("process must be one of VP, SubVP", verb, "VP", score, NOISE)


@pytest.mark.parametrize("name", [v for v in VERBS if v != "score_sensitivity"])
def test_score_of_nan(name):
    message = "3 of 3 results hold NaN or infinity: check that the score is finite"
    refuses(message, VERBS[name], PROCESS, _nan, NOISE, error=FloatingPointError)


def test_zero_weight_where_paths_end():
    """Its influence is beyond numbers even against the data, and the advice is not to take them."""
    data = ss.Points(jnp.array([[0.0, 0.0], [50.0, 50.0]]), jnp.array([1.0, 0.0]))
    score = ss.exact_score(PROCESS, ss.Points(data.points[1:]))
    refuses(
        "with base=data give the points a bandwidth, or leave those of weight 0 out",
        ss.attribute,
        PROCESS,
        score,
        data,
        ss.functionals.pixel(0),
        NOISE,
        error=FloatingPointError,
    )


def _nan(t, x):
    return jnp.nan * x


def test_score_sensitivity_of_a_score_of_nan():
    refuses(
        "3 of 3 results hold NaN",
        ss.score_sensitivity,
        PROCESS,
        _nan,
        ss.add(POINTS),
        0.5,
        NOISE,
        log_density=jnp.zeros(3),
        error=FloatingPointError,
    )


def test_nan_is_returned_when_asked_for_with_its_stats():
    mixed = jnp.ones((3, 2)).at[1].set(5.0)
    solve = ss.Solve(steps=2, throw=False)
    path = ss.sample_ode(PROCESS, _nan_far_out, mixed, solve=solve)
    np.testing.assert_array_equal(path.stats.finite, [True, False, True])
    np.testing.assert_array_equal(np.isfinite(path.x).all(1), [True, False, True])


def _nan_far_out(t, x):
    return jnp.where(jnp.sum(x) > 5, jnp.nan, -x)


def test_velocity_of_another_shape():
    refuses(
        "velocity",
        ss.log_density_along,
        PROCESS,
        score,
        lambda t, x: x[:1],
        NOISE,
        trace=ss.Exact(),
        solve=SHORT,
    )


def test_missing_key():
    probes = ss.Hutchinson()
    message = "Hutchinson needs key=jax.random.key"
    refuses(message, ss.sample_ode, PROCESS, score, NOISE, trace=probes)
    refuses(message, ss.encode, PROCESS, score, NOISE, trace=probes)
    refuses(message, ss.sample_sensitivity, PROCESS, score, ss.add(POINTS), NOISE)
    refuses(message, ss.score_sensitivity, PROCESS, score, ss.add(POINTS), 0.5, NOISE)
    refuses(message, ss.attribute, PROCESS, score, DATA, PIXEL, NOISE, base=None)
    change = ss.add(POINTS)
    refuses(message, ss.counterfactual, PROCESS, score, change, NOISE, mass=0.5)
    refuses("loss_sensitivity needs key", loss, key=None)
    refuses("sample_sde needs key", ss.sample_sde, PROCESS, score, NOISE, key=None)


KEYED = {
    "sample_prior": lambda key: PROCESS.sample_prior((3, 2), key=key),
    "sample_sde": lambda key: ss.sample_sde(PROCESS, score, NOISE, key=key, solve=SHORT),
    "Diffusion": ss.Diffusion,
    "Hutchinson": lambda key: ss.sample_ode(
        PROCESS, score, NOISE, trace=ss.Hutchinson(), key=key, solve=SHORT
    ),
    "loss_sensitivity": lambda key: loss(key=key),
    "calibrate": lambda key: ss.calibrate(PROCESS, score, POINTS, key=key, count=8),
    "the gap's estimate": lambda key: ss.gap_certificate(
        ss.OU(theta=1.0, g=1.0, t_max=10.0), lambda t, x: -jnp.vdot(x, x), NOISE, key=key
    ),
}
ROWS = [name for name in KEYED if name not in ("sample_prior", "calibrate", "the gap's estimate")]


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize(
    ("key", "message"),
    [
        (3, "got 3"),
        ((0, 1), r"got \(0, 1\)"),
        (np.zeros(2), r"got float64 of shape \(2,\)"),
        (jax.random.split(jax.random.PRNGKey(0), 3), r"got uint32 of shape \(3, 2\)"),
        (jax.random.split(KEY, (3, 2)), r"got key<fry> of shape \(3, 2\)"),
    ],
    ids=["number", "tuple", "floats", "rows of the older kind", "a table"],
)
def test_what_is_no_key(name, key, message):
    refuses(rf"{name} needs key=jax\.random\.key.*{message}", KEYED[name], key)


@pytest.mark.parametrize("name", [name for name in KEYED if name not in ROWS])
def test_a_row_of_keys_where_one_belongs(name):
    refuses(
        rf"{name} needs key.*got key<fry> of shape \(3,\)", KEYED[name], jax.random.split(KEY, 3)
    )


def test_a_row_of_keys_and_one_of_the_older_kind_will_do():
    one = np.asarray(PROCESS.sample_prior((3, 2), key=jax.random.PRNGKey(0)))
    np.testing.assert_array_equal(one, PROCESS.sample_prior((3, 2), key=KEY))
    assert len(ss.Diffusion(jax.random.split(KEY, 3)).key) == 3


@pytest.mark.parametrize("t", [0.0, -0.1, 1.5, np.nan])
def test_time_outside_its_range(t):
    message = r"t must lie in \(0, 1.0\] for VP"
    refuses(message, ss.score_sensitivity, PROCESS, score, ss.add(POINTS), t, NOISE, base=DATA)


def test_log_density_of_another_length():
    refuses(
        r"log_density must have shape \(3,\), got \(2,\)",
        ss.score_sensitivity,
        PROCESS,
        score,
        ss.add(POINTS),
        0.5,
        NOISE,
        log_density=jnp.zeros(2),
    )


# ------------------------------------------------------------------ attribution


@pytest.mark.parametrize(
    ("functional", "message"),
    [
        (lambda x: jnp.outer(x, x), r"a scalar or a vector \[P\] .* got shape \(2, 2\); flatten"),
        (lambda x: x[:0], r"got shape \(0,\)"),
        (lambda x: jnp.argmax(x), "one floating-point array, got .*int"),
        (lambda x: (x[0], x[1]), "one floating-point array"),
        (3.0, "must be a function"),
    ],
)
def test_functional(functional, message):
    refuses(message, attribute, functional)


@pytest.mark.parametrize(
    ("functional", "part"),
    [
        (lambda x: jnp.log(-jnp.sum(x**2)), "value"),
        (lambda x: jnp.stack([x[0], jnp.sqrt(jnp.sum((x - x) ** 2))]), "gradient"),
        (ss.functionals.pixel(2), "value"),
        (ss.functionals.logit(lambda x: x, 10), "value"),
    ],
)
def test_a_functional_of_nan_is_blamed_itself(functional, part):
    message = f"the functional's {part} holds NaN or infinity at sample 0, which is finite"
    refuses(message, attribute, functional, error=FloatingPointError)
    whole = attribute(functional, solve=ss.Solve(steps=2, throw=False))
    assert not whole.stats.finite.any() and jnp.isfinite(whole.x).all()


@pytest.mark.parametrize("top", [0, 6, 2.0])
def test_top(top):
    message = f"top must be a whole number from 1 to 5, got {top}"
    refuses(message, attribute, top=top)
    refuses(message, loss, top=top)


def test_data_that_are_no_points():
    for data in (POINTS, ss.GaussianMixture(jnp.ones(5), POINTS, jnp.ones(5))):
        refuses(r"data must be Points\(images\)", attribute, data=data)


def test_base_of_attribution():
    refuses("base must be 'data', a measure, or None, got 'model'", attribute, base="model")
    refuses("base must be a measure", attribute, base=POINTS)
    refuses("base must be 'data'", loss, base="nonsense")


def test_points_on_the_host_that_are_not():
    refuses("on_host takes a numpy array, a memory map or a Stream", ss.Points.on_host, POINTS)
    refuses("points holds int64", ss.Points.on_host, np.ones((3, 2), int))
    bad = np.where(np.arange(10_000)[:, None] == 9_000, np.nan, np.ones((1, 2)))
    refuses("points has 2 entries that are NaN", ss.Points.on_host, bad)
    weights = np.ones(3)
    refuses(r"weights must have shape \(5,\)", ss.Points.on_host, np.asarray(POINTS), weights)


def test_solvers_without_fixed_stages():
    """Attribution and the reverse SDE walk an explicit rule's stages on a fixed grid."""
    adaptive, implicit = ss.Solve(rtol=1e-3, atol=1e-3), ss.Solve(solver=diffrax.Kvaerno3())
    for solve, message in ((adaptive, "fixed grid"), (implicit, "explicit Runge-Kutta .* Kvaerno")):
        refuses(message, attribute, solve=solve)
        refuses(message, ss.sample_sde, PROCESS, score, NOISE, key=KEY, solve=solve)
        given = {"base": DATA, "route": ss.Diffusion(KEY), "solve": solve}
        refuses(message, ss.sample_sensitivity, PROCESS, score, ss.add(POINTS), NOISE, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"levels": jnp.ones((2, 2))}, r"levels must be a vector \[Q\] .* got shape \(2, 2\)"),
        ({"levels": jnp.ones(0)}, r"levels must be a vector \[Q\]"),
        ({"levels": np.ones(2, int)}, "levels holds int64"),
        ({"levels": jnp.array([0.5, -1.0])}, "levels must be a finite number greater than 0"),
        ({"levels": jnp.array([0.5, np.nan])}, "levels must be a finite number greater than 0"),
        ({"weights": jnp.ones(3)}, r"weights must have shape \(2,\), got \(3,\)"),
        ({"weights": jnp.array([1.0, -1.0])}, "weights must be 0 or greater"),
        ({"draws": 0}, "draws must be a whole number >= 1"),
        ({"x": jnp.ones((3, 4))}, r"must have shape \[M, 2\]"),
    ],
)
def test_loss_sensitivity(given, message):
    refuses(message, loss, **given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.functionals.pixel(), "whole numbers of one entry"),
        (lambda: ss.functionals.pixel(0.5), "whole numbers of one entry"),
        (lambda: ss.functionals.inner_product(np.ones(2, int)), "direction holds int64"),
        (lambda: ss.functionals.components(np.ones(2)), "add a leading axis"),
        (lambda: ss.functionals.logit(3, 0), "must be a function"),
        (
            lambda: ss.functionals.log_density(PROCESS, score, trace=ss.Hutchinson()),
            r"Hutchinson draws probes: use Exact\(\)",
        ),
    ],
)
def test_ready_functionals(make, message):
    refuses(message, make)


# ------------------------------------------------------------------ guided scores, other models

GUIDED = ss.guide(score, score, 2.0)
CHANGE = ss.add(POINTS)


@pytest.mark.parametrize(
    ("score", "change", "given", "message"),
    [
        (GUIDED, CHANGE, {}, r"two laws: give Pair\(unconditional, conditional\) as perturbation"),
        (GUIDED, ss.Pair(CHANGE), {"base": DATA}, "as base, got Points"),
        (GUIDED, ss.Pair(CHANGE), {"base": ss.Pair(DATA), "prior": DATA}, "as prior, got Points"),
        (GUIDED, ss.Pair(), {}, "changes neither of the two laws"),
        (GUIDED, ss.Pair(CHANGE, ss.add(DATA)), {}, r"a Pair have \[1, 5\] directions"),
        (GUIDED, ss.Pair(CHANGE, ss.add(jnp.ones((5, 3)))), {}, "samples of shapes"),
        (score, ss.Pair(CHANGE, CHANGE), {}, "a Pair belongs to a guided score"),
        (score, CHANGE, {"base": ss.Pair(DATA, DATA)}, "a Pair belongs to a guided score"),
        (score, CHANGE, {"base": DATA, "prior": ss.Pair()}, "a Pair belongs to a guided score"),
    ],
)
def test_pairs(score, change, given, message):
    given = {"trace": ss.Exact(), **given}
    refuses(message, ss.sample_sensitivity, PROCESS, score, change, NOISE, **given)
    refuses(message, ss.counterfactual, PROCESS, score, change, NOISE, mass=0.5, **given)


def test_guided_scores_where_one_law_is_meant():
    refuses("attribute takes a score of one", attribute, score=GUIDED)
    run = (PROCESS, GUIDED, CHANGE, 0.5, NOISE)
    refuses("a guided score is that of no law", ss.score_sensitivity, *run, base=DATA)


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_guidance_weight(weight):
    refuses("weight has 1 entries that are NaN", ss.guide, score, score, weight)


def test_newcomers_of_another_shape():
    """Both shapes are named: what was got, and what it has to match."""
    message = r"must have shape \[M, 3\] to match the other arguments, got \(3, 2\)"
    given = {"trace": ss.Exact(), "solve": SHORT}
    for change in (ss.add(jnp.ones((1, 3))), ss.add(ss.Learned(PROCESS, score, (3,), DATA))):
        refuses(message, ss.sample_sensitivity, PROCESS, score, change, NOISE, **given)
        refuses(message, ss.counterfactual, PROCESS, score, change, NOISE, mass=0.5, **given)
        base = {"base": DATA, **given}
        refuses("shapes", ss.sample_sensitivity, PROCESS, score, change, NOISE, **base)


def test_another_model_from_another_noise_level():
    """Its prior is not known at the level where the paths begin."""
    change = ss.add(ss.Learned(ss.EDM(), score, (2,)))
    message = "begin at noise level 152.2 and the Learned law's process ends at 80: give it a prior"
    given = {"trace": ss.Exact(), "solve": SHORT}
    refuses(message, ss.sample_sensitivity, PROCESS, score, change, NOISE, **given)
    refuses(message, ss.counterfactual, PROCESS, score, change, NOISE, mass=0.5, **given)


def test_another_model_at_a_place():
    """A score's derivative asks for its density at a place, which it does not have."""
    change = ss.add(ss.Learned(PROCESS, score, (2,)))
    run = (PROCESS, score, change, 0.5, NOISE)
    refuses("log-density along paths alone", ss.score_sensitivity, *run, base=DATA)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "Solve.steps must be a whole number >= 1, got 0"),
        ({"steps": 2.5}, "Solve.steps must be a whole number >= 1, got 2.5"),
        ({"max_steps": 0}, "Solve.max_steps"),
        ({"batch_size": -1}, "Solve.batch_size"),
        ({"tau_min": 0.0}, "Solve.tau_min must be a finite number greater than 0, got 0.0"),
        ({"tau_min": np.nan}, "Solve.tau_min"),
        ({"rho": -1.0}, "Solve.rho"),
        ({"rtol": 1e-3}, "rtol and atol together"),
    ],
)
def test_solve(settings, message):
    refuses(message, ss.Solve, **settings)


def test_too_few_steps_for_the_tolerance():
    solve = ss.Solve(rtol=1e-9, atol=1e-9, max_steps=3, solver=diffrax.Tsit5())
    message = "3 of 3 paths did not reach their end in 3 steps: loosen rtol"
    refuses(message, ss.sample_ode, PROCESS, score, NOISE, solve=solve, error=FloatingPointError)


def test_sde_with_tolerances():
    solve = ss.Solve(rtol=1e-3, atol=1e-3)
    refuses("fixed grid", ss.sample_sde, PROCESS, score, NOISE, key=KEY, solve=solve)


@pytest.mark.parametrize(
    ("process", "parameters", "message"),
    [
        (ss.VP, {"beta_min": 0.0}, "VP.beta_min must be a finite number greater than 0, got 0.0"),
        (ss.VP, {"t_max": -1.0}, "VP.t_max"),
        (ss.SubVP, {"beta_max": np.nan}, "SubVP.beta_max"),
        (ss.VE, {"sigma_min": 0.0}, "VE.sigma_min"),
        (ss.VE, {"sigma_min": 2.0, "sigma_max": 1.0}, "VE.sigma_max"),
        (ss.EDM, {"t_max": np.inf}, "EDM.t_max"),
        (ss.OU, {"theta": -1.0}, "OU.theta"),
        (ss.Cosine, {"t_max": 1.0}, "Cosine.t_max must be below 1, where the signal vanishes"),
        (ss.FlowMatching, {"t_max": 1.0}, "FlowMatching.t_max must be below 1"),
    ],
)
def test_process_parameters(process, parameters, message):
    refuses(message, process, **parameters)


@pytest.mark.parametrize("probes", [0, -1, 1.5])
def test_probes(probes):
    refuses("Hutchinson.probes must be a whole number >= 1", ss.Hutchinson, probes)


def test_block_size():
    refuses("Exact.block_size must be a whole number >= 1", ss.Exact, 0)
