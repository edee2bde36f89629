"""`scoresens attribute`: what each training image does to a number of each sample."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from scoresens.cli._command import Command
from scoresens.cli._common import Setup, black_box, picture, set_up_run, write, write_arrays
from scoresens.cli._config import ConfigError
from scoresens.cli._functionals import FunctionalSettings, Question, make_question
from scoresens.cli._interrupt import attended
from scoresens.cli._progress import Stages, blaming
from scoresens.cli._settings import Base, PathSettings, Sampler, at_least, route_of
from scoresens.flow.solve import Solve
from scoresens.flow.starts import lowest_level
from scoresens.report.influence import PART, Influence, draw_influence, median_levels
from scoresens.report.samples import SHOWN
from scoresens.report.tables import table
from scoresens.sensitivity.attribution import attribute
from scoresens.statistics.displacements import class_names, looks_like

DRAWN = 4  # images of either kind that the picture shows


@dataclass(frozen=True, kw_only=True)
class AttributeRun(PathSettings):
    """Settings of `scoresens attribute`, explained in its help."""

    functional: FunctionalSettings = field(default_factory=FunctionalSettings)
    top: int = 10
    scores: Literal["all", "top"] = "all"
    sampler: Sampler = "ode"
    checkpoint: str = "digits"
    base: Base = "data"

    def __post_init__(self):
        super().__post_init__()
        at_least(1, top=self.top)


def run_attribute(run: AttributeRun, out: Path, where: str) -> str:
    """Write which training images raise and lower a number of each sample; the table of the run."""
    stages, solve = Stages(), attended(Solve(steps=run.steps))
    setup = set_up_run(run, run.checkpoint, where, stages)
    if run.top > len(setup.data):
        raise ConfigError(
            f"{where}: top is {run.top}, and there are {len(setup.data)} {setup.dataset.form.nouns}"
        )
    with blaming(f"{where}: functional"):
        question = question_of(run.functional, setup, solve)
    with stages("attribution", f"compiling and integrating {run.count} paths and adjoints"):
        options = black_box(setup, run.base, run.trace, run.seed)
        options["route"] = route_of(run.sampler, run.seed)
        found = attribute_samples(
            setup, question, setup.noise, run.top, solve, run.scores == "all", **options
        )
    title = question.title(setup.dataset, run.count)
    write_arrays(out / "scores.npz", **_arrays(found))
    result = setup.about | attributed_result(setup, found)
    result |= {"functional": question.name, "parts": question.parts}
    same = result["same_class"]
    write(out, result, run, stages)
    with stages("pictures", "drawing"):
        picture(draw_attributed, out / "report.png", setup, question, found, title)
    nouns = setup.dataset.form.nouns
    says = (
        f"of the class their sample looks like: {same['top']:.0%} of the {question.kinds[0]} "
        f"{nouns}, {same['bottom']:.0%} of the {question.kinds[1]}, {same['all']:.0%} of all"
    )
    return f"{title}\n\n{_table(setup, question, found)}\n\n{says}"


def question_of(settings: FunctionalSettings, setup: Setup, solve: Solve) -> Question:
    """The functional that settings name, of samples of the model."""
    model, dataset, data = setup.model, setup.dataset, setup.data
    return make_question(settings, dataset, data, model.process, model.score, solve)


def attribute_samples(
    setup: Setup,
    question: Question,
    noise: jax.Array,
    top: int,
    solve: Solve,
    dense: bool = True,
    **options: Any,
) -> Influence:
    """What every image does to the functional of the sample of each noise.

    Args:
        setup: data and model.
        question: the functional.
        noise: `[M, *shape]`.
        top: how many images of either kind to name.
        solve: the numerics.
        dense: whether to keep the scores of all images.
        options: of `scoresens.attribute`.
    """
    asked = setup.process, setup.score, setup.data, question.functional, noise
    options |= {"top": None if dense else top, "profile": True, "solve": solve}
    found = attribute(*asked, **options)
    gradient = jax.jit(jax.vmap(jax.jacrev(question.functional)))(found.x)
    gradient, found = jax.tree.map(np.asarray, jax.device_get((gradient, found)))
    ranked = found[1:5] if found.scores is None else _ranked(found.scores, top)
    top_scores, top_images, bottom_scores, bottom_images = ranked
    edges = np.append(found.levels, lowest_level(setup.process, solve))
    return Influence(
        found.x, gradient, found.value, top_images, top_scores, bottom_images, bottom_scores,
        edges, found.profile, scores=found.scores,
    )  # fmt: skip


def draw_attributed(
    path: Path,
    setup: Setup,
    question: Question,
    found: Influence,
    title: str,
    samples: np.ndarray | None = None,
    rows_are: str = "",
) -> Path:
    """Write the picture of what images do to samples.

    Args:
        path: the PNG file.
        setup, question, found: what was attributed, and to what.
        title: of the picture.
        samples: the numbers that the samples go by, to show all of them; left out, the first are
            shown.
        rows_are: what the samples shown are, for the caption.
    """
    parts = question.parts or ("",)
    if samples is None:
        samples = np.arange(min(len(found.x), max(1, SHOWN // len(parts))))
        rows_are = f"The first {len(samples)} of {len(found.x)} samples"
    rows = [(m, p) for m in range(len(samples)) for p in range(len(parts))]
    noun = setup.dataset.form.noun
    told = setup.named.labelled
    looks = [told * f"like {name}" for name in class_names(found.x, setup.named)]
    labels = [
        "\n".join(filter(None, (f"sample {samples[m]}", looks[m], parts[p]))) for m, p in rows
    ]
    places, which = (np.array(part) for part in zip(*rows, strict=True))
    at = (places, which) if question.parts else places
    apart = ("gradient", "value", "top", "top_scores", "bottom", "bottom_scores", "profile")
    shown = {name: getattr(found, name)[at] for name in apart}
    return draw_influence(
        path,
        setup.named,
        found._replace(x=found.x[places], labels=labels, scores=None, **shown),
        images=DRAWN,
        title=title,
        says=question.says,
        kinds=question.kinds,
        remark=f"\n{rows_are}"
        f"{f', labelled with the class of their nearest training {noun}' * told}.",
    )


def attributed_result(setup: Setup, found: Influence) -> dict[str, Any]:
    """What result.json records of what images do to samples."""
    return {
        "class": class_names(found.x, setup.named),
        "same_class": _same_class(setup, found),
        "value": found.value,
        **_extremes(found),
        "levels": found.edges[:-1],
        "profile": found.profile,
        "median_level": median_levels(found.profile, found.edges),
    }


def _same_class(setup: Setup, found: Influence) -> dict[str, float]:
    """The shares of the images named, and of all, that are of the class their sample looks like."""
    own = looks_like(found.x, setup.named)
    labels = setup.dataset.labels

    def share(indices):
        mine = own.reshape(-1, *[1] * (indices.ndim - 1))
        return float(np.mean(labels[indices] == mine))

    everyone = np.broadcast_to(np.arange(len(labels)), (len(own), len(labels)))
    return {"top": share(found.top), "bottom": share(found.bottom), "all": share(everyone)}


def _ranked(scores, top):
    """The largest and the smallest scores, and whose they are."""
    order = np.argsort(scores, axis=-1, kind="stable")
    most, least = order[..., ::-1][..., :top], order[..., :top]
    return np.take_along_axis(scores, most, -1), most, np.take_along_axis(scores, least, -1), least


def _arrays(found):
    kept = {"x": found.x, "value": found.value, "levels": found.edges[:-1]}
    kept |= {"profile": found.profile}
    if found.scores is not None:
        return kept | {"scores": found.scores}
    return kept | _extremes(found)


def _extremes(found: Influence) -> dict[str, np.ndarray]:
    """The images named, and their scores, by their names in files."""
    top = {"top_indices": found.top, "top_values": found.top_scores}
    return top | {"bottom_indices": found.bottom, "bottom_values": found.bottom_scores}


def _table(setup, question, found):
    """A row for each sample in the picture: its class, its number, and its extreme images."""
    parts, looks = question.parts or ("",), class_names(found.x, setup.named)
    levels = median_levels(found.profile, found.edges)
    rows = {}
    for m in range(min(SHOWN, len(found.x))):
        for p, part in enumerate(parts):
            at = (m, p) if question.parts else (m,)
            best, worst = (
                f"{PART * scores[at][0]:+.2f} by #{images[at][0]} "
                f"({setup.dataset.class_names[setup.dataset.labels[images[at][0]]]})"
                for images, scores in (found[3:5], found[5:7])
            )
            rows[f"sample {m}{part and ', '}{part}"] = {
                "looks like": looks[m],
                "value": f"{found.value[at]:.2f}",
                f"most {question.kinds[0]} per {PART:.0%}": best,
                f"most {question.kinds[1]} per {PART:.0%}": worst,
                "median noise level": f"{levels[at]:.2g}",
            }
    return table(rows)


COMMAND = Command(
    name="attribute",
    run=run_attribute,
    settings=AttributeRun,
    brief="training images that raise or lower a number of each sample",
    about="""\
Which training images, or rows of a table, make a sample what it is? Asks of each at once, by one
pass down the sample's path and one back up: if a little of the data's weight were moved to it, by
how much would a number of the sample rise (helpful) or fall (harmful)?

Settings: top (images named of either kind), scores ("all", or "top": keep those of the images
named, nothing of the data's size), sampler ("ode", or "sde", its Brownian path held); [data],
checkpoint, count, seed, steps, base, trace, bandwidth, temperature, width, resolution,
spectral_bias as for sensitivity; [functional] kind, class_name, image, pixel, components.

[functional] kind, the number that is attributed:
  "itself"       how far the sample stands from the mean of the data, in its own direction: more of
                 it is the same sample, more pronounced (default)
  "class"        log-odds of the class it looks like most, or of class_name
  "closeness"    minus its distance to the training image with index image
  "pixel"        one grey value, pixel = [row, column]; of a table one column in its own units,
                 pixel = [column]; of a series [step, column]
  "components"   the first principal components of the data, components = 3
  "log_density"  the model's log-density of the sample
Scores are per unit of mass: 0.01 times a score is what 1 % of the data's weight does, to first
order, and the scores of a set of images add up. The picture and the table show 0.01 times.""",
    example="scoresens attribute configs/attribute.toml",
    writes={
        "scores.npz": "scores [M, N] ([M, P, N] for components); x, value, levels, profile",
        "report.png": "helpful and harmful images, and the noise levels at which they act",
        "result.json": "the images named, with their scores, values, profiles",
    },
)
