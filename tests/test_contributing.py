"""The worked examples of CONTRIBUTING.md are what a newcomer writes: one class, function or file
each, and they pass what the library's own pass."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import frames
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from command_line import rows, scoresens
from jax.scipy.special import gammaln
from jax.tree_util import Partial
from scipy.stats import multivariate_t

import scoresens as ss
from scoresens import cli
from scoresens._pytrees import register_dataclass
from scoresens.cli._command import Command, add_optional_config
from scoresens.cli._common import write
from scoresens.cli._progress import Stages, blaming
from scoresens.datasets import DataSettings, prepare
from scoresens.importers import Foreign, Schedule
from scoresens.laws import EDM, Kernel
from scoresens.laws.processes import Scalar, by_name
from scoresens.report.tables import table

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
IMPORTED = (
    dataclass, gammaln, jax, jnp, np, ss, Command, DataSettings, EDM, Foreign, Kernel, Partial,
    Path, Scalar, Schedule, Stages, add_optional_config, blaming, prepare, register_dataclass,
    table, write,
)  # fmt: skip


def example(name) -> dict[str, Any]:
    """What a block of the page defines, with what files of its kind import."""
    (block,) = re.findall(rf"```python {name}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {key: value for key, value in globals().items() if value in IMPORTED}
    exec(compile(block, f"{PAGE.name}, {name}", "exec"), names)
    return names


@pytest.mark.slow
def test_a_process_is_found_by_its_name_and_obeys_the_laws():
    fading = example("process")["Fading"]
    assert by_name()["Fading"] is fading
    process = fading()
    tau = 0.7
    laws.close(process.noise_level(process.time(tau)), tau, relative=1e-14)
    laws.close(process.diffusion(3.0), np.sqrt(2 * 3.0) * np.exp(-0.05 * 3.0), relative=1e-12)
    laws.check_score_derivative(process, tau)
    for asked in (frames.paths, frames.changes, frames.finite_changes):
        frames.check_one_answer(asked, process)


@pytest.mark.slow
def test_a_kernel_is_one_method():
    kernel, data, x = example("kernel")["Student"](5.0), laws.DATA, np.array([0.3, -0.2])
    law = ss.Points(jnp.asarray(data.points), jnp.asarray(data.weights), 0.4, kernel)
    spread = 0.5**2 + 0.4**2
    kernels = [multivariate_t(y, spread * np.eye(2), df=5).pdf(x) for y in data.points]
    share = data.weights * kernels / np.sum(data.weights * kernels)
    found = law.posterior(0.5, jnp.asarray(x))
    density = np.log(np.sum(data.weights * kernels))
    laws.close(law.log_density(0.5, jnp.asarray(x)), density, relative=1e-12)
    expected = (0.4**2 * x + 0.5**2 * share @ data.points) / spread
    laws.close(found.mean, expected, relative=1e-12)
    # What is added to such data has their kernel, and attribution reads it off the same table.
    process, noise = laws.between_levels(ss.EDM())
    score = ss.exact_score(process, law)
    pushed = ss.sample_sensitivity(
        process, score, ss.add(law.points), noise, base=law, solve=laws.SHORT
    )
    owed = ss.attribute(process, score, law, lambda x: x[0], noise, solve=laws.SHORT)
    laws.close(owed.scores, pushed.tangent[..., 0], relative=1e-10)


def test_a_trace_estimator_is_two_methods():
    estimator = example("trace")["FirstEntry"]()
    process, noise = laws.between_levels(ss.EDM())
    law = ss.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.ones(1))
    run = (process, ss.exact_score(process, law), noise)
    found = ss.sample(*run, trace=estimator, prior=law, solve=laws.SHORT)
    exact = ss.sample(*run, trace=ss.Exact(), prior=law, solve=laws.SHORT)
    laws.close(found.log_density, exact.log_density, relative=1e-12)


def test_a_functional_is_a_function():
    process, noise = laws.between_levels(ss.EDM())
    found = ss.attribute(
        process, laws.bent(process), laws.CROWD, example("functional")["energy"], noise,
        solve=laws.SHORT,
    )  # fmt: skip
    x = np.asarray(found.x)
    laws.close(found.value, np.sum(x**2, -1) / 2, relative=1e-14)
    by_entry = ss.attribute(
        process, laws.bent(process), laws.CROWD, lambda x: x, noise, solve=laws.SHORT
    )
    laws.close(
        found.scores, np.einsum("md,mdn->mn", x, np.asarray(by_entry.scores)), relative=1e-10
    )


def test_a_command_is_one_file(tmp_path, monkeypatch, capsys):
    command = example("command")["COMMAND"]
    monkeypatch.setitem(cli.COMMANDS, command.name, command)
    ran = scoresens("brightness", out=tmp_path / "out")
    assert ran.code == 0, ran.told
    digits = prepare(DataSettings("digits"))
    means = [digits.images[digits.labels == i].mean() for i in range(10)]
    laws.close(list(ran.result["brightness"].values()), means, relative=1e-6)
    assert rows(ran.printed)["3"] == [f"{means[3]:.3f}"]
    assert cli.main(["brightness", "--help"]) == 0
    assert "How bright are the images" in capsys.readouterr().out


@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_an_importer_is_one_function(tmp_path, tau):
    matrix = np.random.default_rng(0).normal(size=(3, 3))
    np.save(tmp_path / "matrix.npy", matrix)
    foreign = example("importer")["from_linear"](tmp_path / "matrix.npy")
    x = np.array([1.0, -2.0, 0.5])
    expected = (matrix @ x / (1 + tau**2) - x) / tau**2
    laws.close(foreign.score(tau, jnp.asarray(x)), expected, relative=1e-12)
