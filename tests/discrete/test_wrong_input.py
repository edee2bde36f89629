"""Every wrong call says what was expected, what was got, and what to do."""

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoresens as ss
from scoresens import discrete as dc

PROCESS, KEY = chains.PROCESSES["masked"], jax.random.key(0)
POINTS = np.array([[0, 1], [2, 2], [1, 0]])
DATA = dc.Sequences(POINTS, 3, flip=0.1)
NETWORK = chains.network(PROCESS)
NOISE = jnp.full((2, 2), 3)
pytestmark = pytest.mark.usefixtures("unchecked_annotations")


def refuses(message, function, *args, **kwargs):
    with pytest.raises(ValueError, match=message):
        function(*args, **kwargs)


@pytest.mark.parametrize("kind", [dc.Uniform, dc.Masked])
@pytest.mark.parametrize("alphabet", [1, 0, -3, 2.5, None])
def test_alphabets(kind, alphabet):
    refuses("alphabet must be a whole number of symbols, 2 or more", kind, alphabet)
    refuses("alphabet must be a whole number", dc.Sequences, POINTS, alphabet)


@pytest.mark.parametrize("residue", [0.0, 1.0, -0.1, np.nan, "1"])
def test_residues(residue):
    refuses("residue must lie above 0 and below 1", dc.Uniform, 3, residue)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (POINTS + 1, "symbols 1 to 3, outside the alphabet 0 to 2; number them from 0"),
        (POINTS - 1, "symbols -1 to 1, outside the alphabet"),
        (POINTS.astype(float), "points holds float64 where symbols belong"),
        (POINTS > 0, "points holds bool"),
        (POINTS[:0], r"batch \[M, d\].*got shape \(0, 2\)"),
        (POINTS[:, :0], r"got shape \(3, 0\)"),
        (POINTS[0], "add a leading axis"),
        (POINTS[..., None], "flatten images"),
    ],
)
def test_points(points, message):
    refuses(message, dc.Sequences, points, 3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(4), r"weights must have shape \(3,\), got \(4,\)"),
        (np.ones(3, int), "weights holds int64"),
        (np.array([1.0, -1, 1]), "weights must be 0 or greater"),
        (np.array([1.0, np.nan, 1]), "weights has 1 entries that are NaN"),
        (np.zeros(3), "weights sums to 0"),
    ],
)
def test_weights(weights, message):
    refuses(message, dc.Sequences, POINTS, 3, weights)
    row = message.replace(r"\(3,\), got \(4,\)", r"\(1, 3\), got \(1, 4\)")
    refuses(row, dc.reweight, DATA, weights)


@pytest.mark.parametrize("flip", [-0.1, 1.0, 2.0, np.nan, np.inf, np.array([0.1, 0.2])])
def test_flips(flip):
    refuses(
        "flip must be one probability, 0 or above and below 1", dc.Sequences, POINTS, 3, None, flip
    )


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ([1, 1], r"indices \[1\] are given twice"),
        ([3], r"index 3\.\.3 lies outside the data's 3 points"),
        ([0.5], "integer indices, got float64"),
        ([], "non-empty list of integer indices"),
        (np.zeros(3, bool), "empty set of points"),
        (np.ones(3, bool), "nothing would be left"),
        (np.ones(4, bool), r"mask must have shape \[3\]"),
    ],
)
def test_remove(which, message):
    refuses(message, dc.remove, DATA, which)


def test_a_place_of_a_law():
    x = jnp.array([0, 3])
    refuses(r"t must be one time above 0.*got 0", DATA.log_density, PROCESS, 0.0, x)
    refuses("t must be one time above 0", DATA.log_density, PROCESS, 1.5, x)
    refuses(
        r"one sequence of shape \(2,\), got \(3,\)", DATA.denoise, PROCESS, 0.5, jnp.zeros(3, int)
    )
    refuses("symbols 0 to 4, outside", DATA.denoise, PROCESS, 0.5, jnp.array([0, 4]))
    refuses("x holds float", DATA.denoise, PROCESS, 0.5, jnp.array([0.0, 1.0]))
    refuses("alphabet of 5 symbols, the data of 3", DATA.denoise, dc.Uniform(5), 0.5, x)


def test_a_process_of_the_continuous_world():
    refuses("discrete.Uniform or discrete.Masked, got EDM", dc.from_denoiser, ss.EDM(), NETWORK)
    refuses("got EDM", dc.sample, ss.EDM(), NETWORK, NOISE, key=KEY)


@pytest.mark.parametrize("draw", [dc.sample, dc.sample_exact])
def test_samplers(draw):
    refuses(
        "symbols 4 to 4, outside the alphabet 0 to 3", draw, PROCESS, NETWORK, NOISE + 1, key=KEY
    )
    refuses("noise holds float", draw, PROCESS, NETWORK, NOISE / 2, key=KEY)
    refuses("needs key=jax.random.key", draw, PROCESS, NETWORK, NOISE, key=None)


def test_numbers_of_samplers():
    refuses(
        "steps must be a whole number >= 1", dc.sample, PROCESS, NETWORK, NOISE, key=KEY, steps=0
    )
    refuses("end must lie above 0", dc.sample_exact, PROCESS, NETWORK, NOISE, key=KEY, end=0.0)
    refuses("draws must be a whole number", dc.noised, PROCESS, POINTS, key=KEY, draws=0)
    refuses("x holds masks", dc.noised, PROCESS, np.asarray(NOISE), key=KEY)


def test_records():
    refuses("a record must be made by", dc.log_probability, PROCESS, NETWORK, NOISE)
    refuses("a record must be made by", dc.attribute, PROCESS, NETWORK, DATA, NOISE)
    record = dc.noised(PROCESS, POINTS, key=KEY, draws=2)
    refuses("top must be a whole number from 1 to the data's 3", dc.attribute, PROCESS, NETWORK, DATA, record, top=4)  # noqa: E501  # fmt: skip
    sharp = dc.Sequences(POINTS, 3)
    refuses("the data need flips", dc.attribute, PROCESS, NETWORK, sharp, record)


def test_changes():
    record, change = dc.noised(PROCESS, POINTS, key=KEY, draws=2), dc.add(POINTS)
    refuses("made by discrete.add", dc.sensitivity, PROCESS, NETWORK, DATA, POINTS, record)
    other = dc.add(np.array([[5, 0]]))
    refuses("symbols 0 to 5, outside", dc.sensitivity, PROCESS, NETWORK, DATA, other, record)
    longer = dc.add(np.array([[1, 0, 1]]))
    refuses(r"shape \[M, 2\] to match", dc.sensitivity, PROCESS, NETWORK, DATA, longer, record)
    refuses("one direction, got 3", dc.counterfactual, PROCESS, NETWORK, DATA, change, 0.1)
    refuses("weight of the changed data is negative", dc.counterfactual, PROCESS, NETWORK, DATA, dc.remove(DATA, [0]), 2.0)  # noqa: E501  # fmt: skip
    refuses("cannot be added up", lambda: change + dc.add(POINTS[:1]))
    refuses("made by discrete.add", lambda: change + POINTS)
    refuses("factor has 1 entries that are NaN", lambda: np.nan * change)
    refuses("new holds float", dc.add, POINTS.astype(float))
