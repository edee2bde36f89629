"""(6.5): against the model's own law smoothed by h, as against that law's closed form."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss

H = 0.3
FOLLOW = {"trace": ss.Exact(), "prior": laws.mixture(), "solve": laws.FINE}
PROCESS, NOISE = laws.between_levels(ss.VP())


def blurred(law):
    """A mixture smoothed by H, in closed form."""
    wider = law.covariances + H**2 * np.eye(2)
    return ss.GaussianMixture(*map(jnp.asarray, (law.weights, law.means, wider)))


def score():
    return ss.exact_score(PROCESS, laws.mixture())


def other_model():
    nu = laws.mixture(1.0)
    return ss.Learned(PROCESS, ss.exact_score(PROCESS, nu), (2,), prior=nu)


@pytest.mark.slow
@pytest.mark.parametrize("added", ["measure", pytest.param("model", marks=pytest.mark.slow)])
def test_both_verbs_are_those_of_the_blurred_law(added):
    """A model that is added is smoothed as much. 1e-8: log rho is solved for."""
    known = blurred(laws.OTHER)
    nu = known if added == "measure" else other_model()
    tangents, samples = [], []
    for law, base in ((nu, ss.Smoothed(H)), (known, blurred(laws.LAW))):
        asked = (PROCESS, score(), ss.add(law), NOISE)
        found = ss.sample_sensitivity(*asked, base=base, **FOLLOW)
        tangents.append(found.tangent)
        samples.append(ss.counterfactual(*asked, mass=0.4, base=base, **FOLLOW).x)
        if isinstance(base, ss.Smoothed):
            expected = laws.LAW.noised(1.0, np.hypot(laws.BOTTOM, H)).log_density(
                np.asarray(found.x)
            )
            laws.close(found.log_density, expected, absolute=1e-6)
    laws.close(tangents[0], tangents[1], relative=1e-7)
    laws.close(samples[0], samples[1], absolute=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [False, True])
def test_duality(noisy):
    data = ss.Points(jnp.asarray(np.random.default_rng(0).normal(size=(30, 2))), None, H)
    options = {
        "base": ss.Smoothed(H),
        "trace": ss.Exact(),
        "prior": laws.mixture(),
        "route": ss.Diffusion(jax.random.key(0)) if noisy else ss.Flow(),
        "solve": ss.Solve(steps=10, tau_min=laws.BOTTOM),
    }
    pixel = ss.functionals.pixel(0)
    scores = ss.attribute(PROCESS, score(), data, pixel, NOISE, **options).scores
    toward = ss.add(data.points)
    tangent = ss.sample_sensitivity(PROCESS, score(), toward, NOISE, **options).tangent
    laws.close(scores, tangent[:, :, 0], relative=1e-9)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"Smoothed.bandwidth must be a finite number"):
        ss.Smoothed(0.0)
    with pytest.raises(ValueError, match=r"Ito\(\) does not follow a Smoothed law"):
        ss.sample_sensitivity(
            PROCESS,
            score(),
            ss.add(NOISE[:1]),
            NOISE,
            base=ss.Smoothed(H),
            trace=ss.Ito(),
            route=ss.Diffusion(jax.random.key(0)),
            solve=ss.Solve(steps=4),
        )
