"""The kernel that a network is nearest to: of networks whose kernel is known."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.sensitivity import calibration

rng = np.random.default_rng(0)
D, N = 12, 400
SPREADS = np.geomspace(3, 0.3, D)
POINTS = np.concatenate([rng.normal(size=(N // 2, D)), rng.laplace(size=(N // 2, D))]) * SPREADS
PROCESS = ss.EDM()
USUAL = ss.default_bandwidth(POINTS)


def network(process, width, resolution):
    """The score of a network that is a kernel's denoiser."""
    data = ss.Points(POINTS, None, 0.6 * width, width=width, resolution=resolution)
    return ss.from_canonical(process, data.denoise)


@pytest.mark.parametrize(
    ("width", "resolution"), [(0.7 * USUAL, 0.02), (1.4 * USUAL, 0.02), (USUAL, 0.2)]
)
def test_finds_the_kernel_that_a_network_is_made_of(width, resolution):
    """Within a stride of the search, for it stops there."""
    score = network(PROCESS, width, resolution)
    found = ss.calibrate(PROCESS, score, POINTS, key=jax.random.key(1), count=128)
    assert abs(np.log(found.width / width)) < np.log(2) / 2
    assert abs(np.log(found.resolution / resolution)) < np.log(4) / 2
    assert found.error < 0.02 < found.sharp @ found.energies / found.energies.sum()


def test_gives_points_that_every_verb_takes():
    score = network(PROCESS, USUAL, 0.05)
    weights = rng.uniform(0.2, 1, N)
    data = ss.Points(POINTS, weights, 3.0, temperature=2.0)
    found = ss.calibrate(PROCESS, score, data, key=jax.random.key(1), count=16)
    points, kernel = found.points, found.points.kernel
    assert kernel.width is not None
    laws.close(kernel.width, calibration.WIDER * found.width, relative=1e-12)
    laws.close(kernel.resolution, calibration.COARSER * found.resolution, relative=1e-12)
    laws.close(points.bandwidth, calibration.OF_WIDTH * kernel.width, relative=1e-12)
    again = ss.Points(
        POINTS, weights, points.bandwidth, width=kernel.width, resolution=kernel.resolution
    )
    x = jnp.asarray(POINTS[3] + 1)
    laws.close(points.denoise(1.0, x), again.denoise(1.0, x), relative=1e-9)
    noise = PROCESS.sample_prior((2, D), key=jax.random.key(2))
    solve = ss.Solve(steps=4)
    pixel = ss.functionals.pixel(0)
    assert ss.attribute(PROCESS, score, points, pixel, noise, solve=solve).scores.shape == (2, N)


def test_a_network_in_another_frame_is_asked_at_the_same_places():
    """VP and EDM have one canonical frame: the same kernel, found from other samples."""
    found = [
        ss.calibrate(process, network(process, USUAL, 0.05), POINTS, key=jax.random.key(1))
        for process in (ss.EDM(), ss.VP())
    ]
    assert abs(np.log(found[0].width / found[1].width)) <= np.log(2) / 2
    assert found[1].error < 0.02


def test_lines_are_taken_out_on_each_axis():
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 3))
    rest = np.stack(
        [y[:, k] - np.polyval(np.polyfit(x[:, k], y[:, k], 1), x[:, k]) for k in range(3)], 1
    )
    laws.close(calibration._without(jnp.asarray(x), jnp.asarray(y)), rest, absolute=1e-12)


def test_the_search_finds_the_bottom_of_a_bowl():
    def bowl(width, resolution):
        return np.log(width / 0.37) ** 2 + 0.3 * np.log(resolution / 0.002) ** 2

    width, resolution = calibration._descended(bowl, 1.0)
    assert abs(np.log(width / 0.37)) <= np.log(2) / 4
    assert abs(np.log(resolution / 0.002)) <= np.log(4) / 4


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 8"):
        ss.calibrate(PROCESS, network(PROCESS, 1.0, 0.1), POINTS, key=jax.random.key(0), count=4)
