"""The page on neighbouring questions runs as printed, and its answers are those of other ways."""

import re
from pathlib import Path

import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.statistics import transport_map

PAGE = Path(__file__).parents[1] / "docs" / "neighbours.md"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page():
    """The names that the page's Python leaves behind."""
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)), names)
    return names


def given(page):
    return page["process"], page["score"]


def test_edits(page):
    assert page["by_flow"].x.shape == page["by_sde"].x.shape == (3, 1, 2)
    assert page["owed"].scores.shape == (3, 8)
    found, solve = page["found"], page["solve"]
    again = ss.sample(*given(page), found.noise, route=found.route, solve=solve).x
    laws.close(again, page["images"], absolute=1e-9)
    little = ss.edit(
        *given(page), page["new"], page["images"], mass=1e-4, base=page["data"],
        route=ss.Diffusion(page["jax"].random.key(1)), solve=solve,
    )  # fmt: skip
    slope = (little.x[:, 0] - page["images"]) / 1e-4
    laws.close(page["slope"].tangent[:, 0], slope, relative=1e-2)


def test_restored_samples_are_the_posterior_s(page):
    """With the exact score of the data, the guided one is the posterior's."""
    exact = ss.exact_score(page["process"], page["posterior"].law)
    samples = ss.sample_ode(page["process"], exact, page["noise"], solve=page["solve"]).x
    laws.close(page["restored"].x[:, 0], samples, absolute=1e-8)
    laws.close(page["moved"].x, samples, absolute=1e-8)


def test_the_leading_edit_moves_samples_as_far_as_its_size_says(page):
    data, edit, step = page["data"], page["edit"], 1e-3
    laws.close(np.sum(data.normalized_weights * np.sum(edit**2, 1)), 1.0, absolute=1e-12)

    def moved(edit):
        change = ss.move(data, np.ones(8, bool), edit)
        after, before = (
            ss.counterfactual(
                *given(page), change, page["noise"], mass=mass, base=data, solve=page["solve"]
            ).x[:, 0]
            for mass in (step, 0.0)
        )
        w2 = np.sqrt(np.mean(np.sum((transport_map(before, after) - before) ** 2, 1)))
        return np.sqrt(np.mean(np.sum((after - before) ** 2, 1))), w2

    size, w2 = moved(edit)
    laws.close(size, step * page["sizes"][0], relative=2e-2)
    assert w2 <= size * (1 + 1e-9)
    other = np.random.default_rng(1).normal(size=edit.shape)
    other = other / np.sqrt(np.sum(data.normalized_weights * np.sum(other**2, 1)))
    assert moved(other)[0] < size


def test_all_steps_at_once(page):
    euler, arguments = page["euler"], (*given(page), page["new"], page["noise"])
    found = ss.sample_sensitivity(*arguments, base=page["data"], solve=euler)
    laws.close(page["path"][-1], found.x, absolute=1e-5)
    laws.close(page["tangent"][-1], found.tangent[:, 0], absolute=1e-4)
    assert jnp.max(jnp.abs(found.tangent)) > 0.01
    assert page["sweeps"] <= euler.steps
