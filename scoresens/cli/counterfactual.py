"""`scoresens counterfactual`: samples after finite changes of the data."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from scoresens.cli._command import Command
from scoresens.cli._common import (
    arrays_in_own_units,
    black_box,
    bound_cosines,
    in_own_units,
    norms_by_mass,
    picture,
    quantiles,
    set_up_change,
    write,
    write_arrays,
)
from scoresens.cli._progress import Stages
from scoresens.cli._settings import Base, ChangeRun, Sampler, route_of
from scoresens.flow import sample
from scoresens.flow.solve import Solve
from scoresens.laws.measures import spacing_of
from scoresens.report.samples import SHOWN, Strip, draw_strip
from scoresens.report.tables import table
from scoresens.sensitivity.counterfactual import counterfactual
from scoresens.statistics.displacements import looks_like
from scoresens.studies.finetuning import reliability

PARTS = (0.04, 0.1, 0.2, 0.4, 1.0)  # of the change, where no masses are named


@dataclass(frozen=True, kw_only=True)
class CounterfactualRun(ChangeRun):
    """Settings of `scoresens counterfactual`, explained in its help."""

    masses: tuple[float, ...] = ()
    sampler: Sampler = "ode"
    checkpoint: str = "digits"
    base: Base = "data"

    def __post_init__(self):
        super().__post_init__()
        if not all(0 < mass <= 1 for mass in self.masses):
            raise ValueError(f"masses must lie in (0, 1], got {list(self.masses)}")
        if list(self.masses) != sorted(set(self.masses)):
            raise ValueError(f"masses must rise, got {list(self.masses)}")

    @property
    def ladder(self) -> tuple[float, ...]:
        """The masses, rising."""
        return self.masses or tuple(float(f"{part * self.change.mass:.3g}") for part in PARTS)


def run_counterfactual(run: CounterfactualRun, out: Path, where: str) -> str:
    """Write samples after a change of the data, at growing masses; the table of the run."""
    stages, solve, masses = Stages(), Solve(steps=run.steps), run.ladder
    changed = set_up_change(run, run.checkpoint, where, stages)
    setup, change, _ = changed
    process, score, route = setup.process, setup.score, route_of(run.sampler, run.seed)
    options = black_box(setup, run.base, run.trace, run.seed)
    options["route"] = route
    with stages("sample", f"compiling and integrating {run.count} paths"):
        before = np.asarray(sample(process, score, setup.noise, route=route, solve=solve).x)
    with stages("counterfactual", f"compiling and integrating them at {len(masses)} masses"):
        start = process, score, change.perturbation, setup.noise
        found = counterfactual(*start, mass=jnp.asarray(masses), solve=solve, **options)
    after, bounded = np.asarray(found.x[:, :, 0]), np.asarray(found.bounded[:, :, 0])
    sizes = norms_by_mass(after, before)
    was = looks_like(before, setup.named)
    turned = [float(np.mean(looks_like(x, setup.named) != was)) for x in np.moveaxis(after, 1, 0)]
    predicted, bound = after[:, -1] - before, None
    if run.sampler == "ode":
        bound = bound_cosines(run, setup, before, predicted, stages)
    title = changed._replace(settings=replace(run.change, mass=masses[-1])).title
    form = setup.dataset.form
    own = arrays_in_own_units(form, before=before, x=after)
    write_arrays(out / "samples.npz", before=before, x=after, masses=masses, bounded=bounded, **own)
    result = changed.about | {"masses": masses, "norms": sizes}
    result |= in_own_units(form, before, change_at_last_mass=predicted)
    moved = change.moved * masses[-1] / run.change.mass
    result |= {"reliability": reliability(predicted, moved, spacing_of(setup.data))}
    result |= {} if bound is None else {"cosine_bound": bound}
    result |= {"norm": [quantiles(column) for column in sizes.T], "other_class": turned}
    result |= {"bounded_samples": np.sum(bounded > 0, 0), "bounded_steps": bounded.sum(0)}
    write(out, result, run, stages)
    with stages("pictures", "drawing"):
        strip = Strip(before, after, masses, sizes[:, -1], bounded, bound)
        path = out / "report.png"
        picture(draw_strip, path, changed.touched, strip, count=SHOWN, title=title)
    rows = {
        f"{mass:g}": {f"|change| {name}": f"{value:.3f}" for name, value in spread.items()}
        | {"other class": f"{share:.0%}", "bounded": f"{count}"}
        for mass, spread, share, count in zip(
            masses, result["norm"], turned, result["bounded_samples"], strict=True
        )
    }
    return f"{title}, {run.count} samples\n\n{table(rows, 'mass')}\n\n{_about_trust(bound)}"


def _about_trust(bound: np.ndarray | None) -> str:
    if bound is None:
        return (
            "how far to trust it was measured on other predictions only: of networks trained "
            "here, with the data, their calibrated kernel and the ODE (docs/trust.md)"
        )
    low, middle, high = np.percentile(bound, (10, 50, 90))
    return (
        "with 90 %, the cosine of a displacement with what fine-tuning would do is above "
        f"{middle:.2f} at the median sample [10 %: {low:.2f}, 90 %: {high:.2f}], above 0.5 for "
        f"{np.mean(bound > 0.5):.0%} of the samples (docs/trust.md)"
    )


COMMAND = Command(
    name="counterfactual",
    run=run_counterfactual,
    settings=CounterfactualRun,
    brief="samples after finite changes of the data",
    about="""\
What would each sample be, had the training data changed? The same noise, followed as the model
would follow it after the change: by a little of it, by more, by all of it. Nothing is trained.

Settings: masses (how much of the change, rising, each above 0 and at most 1; left out: five up to
the change's mass), sampler ("ode", or "sde", its Brownian path held); [data], [change], checkpoint,
count, seed, steps, base, trace, bandwidth, temperature, width, resolution,
spectral_bias as for sensitivity.

The mass of "add" and "model" is the share of the new data; of the others it is the part of the
change that is made, 1 the whole. With base = "model" a removal may ask for more than the model has
somewhere: it is bounded there, and `bounded` counts the samples (and the steps) where it was.""",
    example="scoresens counterfactual configs/counterfactual.toml",
    writes={
        "samples.npz": "before [M, *shape], x [M, E, *shape] at masses [E], bounded [M, E];\n"
        f"{'':22}before_in_own_units and x_in_own_units, of columns",
        "report.png": "a strip a sample: before, then one picture a mass",
        "result.json": "norms of the changes by mass, classes that turned, what to trust",
    },
)
