"""Images under changed data: the way up, and down again."""

import diffrax
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.flow.starts import fold, kick_key

KEY = jax.random.key(3)
PROCESS = ss.EDM(t_max=laws.TOP)
DATA = laws.data_set()
SCORE = ss.exact_score(PROCESS, DATA)
IMAGES = jnp.asarray(laws.DATA.points[:2] + 0.3)
TOWARD = ss.reweight(DATA, jnp.arange(1.0, 7.0))
SHORT = ss.Solve(steps=6, tau_min=laws.BOTTOM)
ROUNDING = laws.either(1e-11, 1e-4)


def edited(mass, route, solve=SHORT):
    return ss.edit(PROCESS, SCORE, TOWARD, IMAGES, mass=mass, base=DATA, route=route, solve=solve).x


@pytest.mark.parametrize("rule", [diffrax.Euler(), diffrax.Heun()])
def test_the_sde_ends_at_the_image(rule):
    """By the sampler itself, from the noise and the kicks."""
    solve = ss.Solve(steps=6, tau_min=laws.BOTTOM, solver=rule)
    found = ss.invert(PROCESS, SCORE, IMAGES, route=ss.Diffusion(KEY), solve=solve)
    again = ss.sample(PROCESS, SCORE, found.noise, route=found.route, solve=solve)
    laws.close(again.x, IMAGES, absolute=ROUNDING)
    if isinstance(rule, diffrax.Euler):
        assert isinstance(found.route, ss.Replay)
        laws.close(found.route.kicks, by_hand(found.noise), relative=1e-12)


def by_hand(noise):
    """Euler's kicks of the drawn noising, in numpy."""
    levels = np.linspace(laws.TOP ** (1 / 7), laws.BOTTOM ** (1 / 7), 7) ** 7
    kicks = []
    for image, key, top in zip(IMAGES, fold(KEY, 2), noise, strict=True):
        path = [np.asarray(image)]
        for i in reversed(range(6)):
            unit = jax.random.normal(kick_key(key, i), (2,))
            path.append(path[-1] + np.sqrt(levels[i] ** 2 - levels[i + 1] ** 2) * unit)
        path = path[::-1]
        laws.close(top, path[0], relative=1e-12)
        law = laws.DATA.unchanged()
        for i in range(6):
            (w, x), (after, there) = ((levels[j] ** -2, path[j]) for j in (i, i + 1))
            denoised = x + law.noised(1.0, levels[i]).score(x[None])[0] / w
            kicks.append(after * there - w * x - (after - w) * denoised)
    return np.reshape(kicks, (2, 6, 2))


@pytest.mark.slow
def test_nothing_changed_gives_the_image_back_along_the_flow():
    """Up to the solver's error, of order 2."""
    errors = [
        np.abs(edited(0.0, ss.Flow(), ss.Solve(steps=steps, tau_min=laws.BOTTOM))[:, 0] - IMAGES)
        for steps in (20, 40)
    ]
    assert np.max(errors[1]) < 0.35 * np.max(errors[0]) < 0.05


def test_nothing_changed_gives_the_image_back_along_the_sde():
    laws.close(edited(0.0, ss.Diffusion(KEY))[:, 0], IMAGES, absolute=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VP", "DiscreteVP"])
def test_black_boxes_of_other_processes_give_the_image_back(name):
    process, _ = laws.between_levels(laws.PROCESSES[name])
    score = ss.exact_score(process, DATA)
    found = ss.edit(
        process, score, TOWARD, IMAGES, mass=jnp.array([0.0, 0.1]), trace=ss.Exact(),
        route=ss.Diffusion(KEY), solve=SHORT,
    )  # fmt: skip
    laws.close(found.x[:, 0, 0], IMAGES, absolute=ROUNDING)
    assert np.max(np.abs(found.x[:, 1, 0] - IMAGES)) > 1e-3


@pytest.mark.parametrize("route", [ss.Flow(), ss.Diffusion(KEY)])
def test_a_little_mass_moves_it_along_the_tangent(route):
    found = ss.invert(PROCESS, SCORE, IMAGES, route=route, solve=SHORT)
    tangent = ss.sample_sensitivity(
        PROCESS, SCORE, TOWARD, found.noise, base=DATA, route=found.route, solve=SHORT
    ).tangent
    expected = (edited(1e-4, route) - edited(-1e-4, route)) / 2e-4
    laws.close(tangent, expected, relative=1e-6)
    assert np.max(np.abs(tangent)) > 0.05


def refuses(message, function, *args, **kwargs):
    with pytest.raises(ValueError, match=message):
        function(*args, **kwargs)


@pytest.mark.usefixtures("unchecked_annotations")
def test_refused():
    found = ss.invert(PROCESS, SCORE, IMAGES, route=ss.Diffusion(KEY), solve=SHORT)
    refuses(
        r"invert takes route=Flow\(\) or Diffusion\(key\), got Replay",
        ss.invert, PROCESS, SCORE, IMAGES, route=found.route, solve=SHORT,
    )  # fmt: skip
    refuses("kicks of 2 samples, got the noise of 1", ss.sample, PROCESS, SCORE, found.noise[:1],
            route=found.route, solve=SHORT)  # fmt: skip
    refuses(r"kicks of shape \(6, 2\), and this path has \(40, 2\)", ss.sample, PROCESS, SCORE,
            found.noise, route=found.route)  # fmt: skip
    refuses("sample_euler takes route=Flow", ss.sample_euler, PROCESS, SCORE, found.noise,
            jnp.asarray([1.0, 0.5]), route=found.route)  # fmt: skip
    refuses("gradient of log rho", ss.invert, ss.EDM(noise=ss.StudentT(3.0)), SCORE, IMAGES,
            route=ss.Diffusion(KEY))  # fmt: skip
    refuses("images must be a batch", ss.invert, PROCESS, SCORE, IMAGES[0],
            route=ss.Diffusion(KEY))  # fmt: skip


def test_kicks_that_are_not_found():
    """A denoiser that expands too fast for Heun's rule."""
    with pytest.raises(FloatingPointError, match="kicks of 2 of 2 images were not found"):
        ss.invert(PROCESS, lambda t, x: 9 * x / t**2, IMAGES, route=ss.Diffusion(KEY), solve=SHORT)
