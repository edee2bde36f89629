"""What commands there are: what each answers, what it runs, and what it leaves behind."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scoresens.cli.attribute import run_attribute
from scoresens.cli.commands import (
    GRID,
    run_counterfactual,
    run_sample,
    run_sensitivity,
    run_train,
)
from scoresens.cli.convert import run_convert
from scoresens.cli.demo import DRAWN, run_demo
from scoresens.cli.finetune import run_finetune
from scoresens.cli.gap import run_gap
from scoresens.cli.halves import run_halves
from scoresens.cli.removal import run_removal
from scoresens.cli.residual import run_residual
from scoresens.cli.retrain import run_retrain
from scoresens.cli.settings import (
    AttributeRun,
    ConvertRun,
    CounterfactualRun,
    DemoRun,
    GapRun,
    HalvesRun,
    RemovalRun,
    ResidualRun,
    RetrainRun,
    SampleRun,
    SensitivityRun,
    StatusRun,
    SweepRun,
    TrainRun,
    ValidateRun,
)
from scoresens.cli.sweep import run_status, run_sweep


class Command(NamedTuple):
    """One command: what it answers, what it runs, and what it leaves behind."""

    run: Callable[..., str]
    settings: type
    brief: str
    about: str
    example: str
    writes: Mapping[str, str]  # what is in each file


class Experiment(NamedTuple):
    """One experiment of `validate`."""

    settings: type
    run: Callable[[Any, Path, str], str]


EXPERIMENTS = {
    "finetune": Experiment(ValidateRun, run_finetune),
    "retrain": Experiment(RetrainRun, run_retrain),
    "halves": Experiment(HalvesRun, run_halves),
    "removal": Experiment(RemovalRun, run_removal),
}


def run_experiment(run: Any, out: Path, where: str) -> str:
    """The experiment that the settings are of."""
    return EXPERIMENTS[run.experiment].run(run, out, where)


COMMANDS = {
    "demo": Command(
        run_demo,
        DemoRun,
        "see what more of one class does to samples of digits",
        f"""\
What do samples of the digits become, when a share of one class is added to the training data?

Draws {DRAWN} samples from the checkpoint that comes with the package, and shows those that move
most and some that move least: before, their first-order change, the counterfactual sample, and the
added images nearest to it (report.png); the same samples as the share grows (strip.png); and the
training images that make each of them what it is, and those that work against it
(attribution.png).""",
        "scoresens demo --class 3 --mass 0.2",
        {
            "report.png": "samples before, first-order changes, counterfactual samples",
            "strip.png": "the same samples at growing masses",
            "attribution.png": "their most helpful and most harmful training images",
            "result.json": "displacements, cosines, classes; scores of the images named",
        },
    ),
    "train": Command(
        run_train,
        TrainRun,
        "train a network on a data set",
        """\
How is a checkpoint made? Trains a denoising network on a data set.

Settings: seed; [data] name, path, count, size, seed; [model] kind, width, depth; [train] steps,
batch_size, learning_rate, warmup, decay, ema_halflife, p_mean, p_std.""",
        "scoresens train configs/digits.toml --out runs/digits",
        {
            "model.safetensors": "the checkpoint; name its path in the other settings",
            "samples.png": f"{GRID} samples",
            "loss.png": "the loss while training",
            "result.json": "losses, number of parameters",
        },
    ),
    "sample": Command(
        run_sample,
        SampleRun,
        "draw samples from a checkpoint",
        """\
What does a checkpoint draw, and how likely does it find its own samples?

Settings, all optional (without CONFIG, the bundled digits): checkpoint ("digits", or a path),
count, seed, sampler ("ode", "sde"), steps, log_density ("exact", "hutchinson"; left out: none).""",
        "scoresens sample configs/sample.toml",
        {
            "samples.npz": "x and noise [M, *shape], log_density [M] if asked for",
            "samples.png": f"the first {GRID} samples",
            "result.json": "their mean, spread and log-density",
        },
    ),
    "counterfactual": Command(
        run_counterfactual,
        CounterfactualRun,
        "samples after finite changes of the data",
        """\
What would each sample be, had the training data changed? The same noise, followed as the model
would follow it after the change: by a little of it, by more, by all of it. Nothing is trained.

Settings: masses (how much of the change, rising, each in (0, 1]; left out: five up to the change's
mass); [data], [change], checkpoint, count, seed, steps, base, trace, bandwidth as for sensitivity.
The mass of "add" and "model" is the share of the new data; of the others it is the part of the
change that is made, 1 the whole. With base = "model" a removal may ask for more than the model has
somewhere: it is bounded there, and `bounded` counts the samples (and the steps) where it was.""",
        "scoresens counterfactual configs/counterfactual.toml",
        {
            "samples.npz": "before [M, *shape], x [M, E, *shape] at masses [E], bounded [M, E]",
            "report.png": "a strip a sample: before, then one image a mass",
            "result.json": "norms of the changes by mass, how many look like another class",
        },
    ),
    "attribute": Command(
        run_attribute,
        AttributeRun,
        "training images that raise or lower a number of each sample",
        """\
To which training images does a sample owe what it is? Asks of every image at once, by one pass down
the sample's path and one back up: if a little of the data's weight were moved to it, by how much
would a number of the sample rise (helpful) or fall (harmful)?

Settings: top (images named of either kind), scores ("all", or "top": keep those of the images
named), sampler ("ode", or "sde"); [data], checkpoint, count, seed, steps, base, trace, bandwidth
as for sensitivity.
[functional] kind, the number asked about:
  "itself"       how far the sample stands from the mean of the data, in its own direction: more of
                 it is the same sample, more pronounced (default)
  "class"        log-odds of the class it looks like most, or of class_name
  "closeness"    minus its distance to the training image with index image
  "pixel"        one grey value, pixel = [row, column]
  "components"   the first principal components of the data, components = 3
  "log_density"  the model's log-density of the sample
Scores are per unit of mass: 0.01 times a score is what 1 % of the data's weight does, to first
order, and the scores of a set of images add up. The picture and the table show 0.01 times.""",
        "scoresens attribute configs/attribute.toml",
        {
            "scores.npz": "scores [M, N] ([M, P, N] for components); x, value, levels, profile",
            "report.png": "helpful and harmful images, and the noise levels at which they act",
            "result.json": "the images named, with their scores, values, profiles",
        },
    ),
    "sensitivity": Command(
        run_sensitivity,
        SensitivityRun,
        "first-order changes of samples",
        """\
How does each sample move, to first order, when the training data change?

Settings: checkpoint, count, seed, steps, base ("data", or "model": black box), trace ("exact",
"hutchinson"; for base = "model"), bandwidth (left out: read off the data); [data] as for train;
[change] kind ("add", "remove", "half", "shift", "model"), classes, images, random, mass, seed,
checkpoint.""",
        "scoresens sensitivity configs/sensitivity.toml",
        {
            "tangents.npz": "x and tangent [M, *shape] per unit of mass; log_density [M], nats,\n"
            f'{"":22}for base = "model"',
            "report.png": "samples, their change, the touched images nearest to them",
            "result.json": "the norms of the changes",
        },
    ),
    "validate": Command(
        run_experiment,
        ValidateRun,
        "compare predicted changes with what training does",
        """\
Are the predictions right?

experiment = "finetune" (or left out): fine-tunes the checkpoint on the changed data and, as
control, on the unchanged data with the same randomness, and compares the real with the predicted
changes of the same samples: first order (all bases), counterfactual, and baselines. A run that was
stopped goes on where it was.

experiment = "halves": trains models from scratch on all images and on random halves of them, by
several seeds, and compares how samples and denoising losses really changed with what is predicted
from the models of all images: the linear datamodeling score (LDS), beside baselines and what
another seed's training says. A run that was stopped goes on where it was, and several processes
may share DIR. Settings: [data], [model], [train] as for train; [halves] seeds, subsets, choosing
(halves on which bandwidths are chosen), samples, held_out (queries), levels, components, seed;
steps, probes, resamples.

experiment = "retrain": the same trained from scratch, on changed and on unchanged data by several
seeds, each pair of one seed's parameters and draws, beside what another seed's training says. It
goes on where it was, too. Settings: those of "finetune", but for [model], [train] and seeds in the
place of checkpoint, [finetune] and repeats.

experiment = "removal": trains from scratch without the images that matter most to a sample, by our
attribution of its loss and of its movement, against the nearest, the least and random images: how
the loss at the sample rises and how far it moves. It goes on where it was, too. Settings: [data],
[model], [train]; queries (samples), shares (of the images left out), seeds, levels, seed, steps,
bandwidth, resamples.

Settings of "finetune": checkpoint, count, seed, steps, bandwidth, probes (of the black boxes'
traces; left out: exact), after (steps of fine-tuning after which to look as well), repeats (pairs
of fine-tunings to average; from 2 on, another fine-tuning is compared too), resamples; [data] as
for train; [change] as for sensitivity; [finetune] as [train].""",
        "scoresens validate configs/digits-finetune.toml",
        {
            "report.png": "predicted and real, side by side, with the agreement",
            "result.json": "each measure of each method, with its bootstrap interval",
            "displacements.npz": "finetune: all samples and predicted changes, to look at again",
            "models/": "what each trained model said",
            "predictions/": "halves: what each method predicted",
        },
    ),
    "gap": Command(
        run_gap,
        GapRun,
        "how far the laws of a network's two samplers are apart",
        """\
Do a network's two samplers draw from one law, and is the difference what its residual says?

A network phi(t, x) estimates the log-density of noised data in the plane. Its reverse SDE and its
probability flow (ODE) draw from the same law only if phi obeys the Fokker-Planck equation; by how
much it does not is the residual R. For each network: samples of both laws by Euler's rule, as the
literature draws them, and of the flow by a converged rule; exact transport distances W2 between
their histograms and the truth; the mean of R^2.

Either --networks FOLDER: its .npz files in the format of write_potential (DATA_wWEIGHT.npz; other
names will do), and histograms.npz if published ones are to be compared with. Or CONFIG, which
trains networks first.

Settings: laws ("blob", "circles2", "checker") and weights (of the residual in the loss), a network
for each of both; [train] steps, batch_size, learning_rate, collocation, where ("box", "forward"),
half_width, t_min, weighting ("score", "noise"); or, instead of laws, networks (a folder); samples,
seed, bins (points a side of the table where scores are looked up).

A run that was stopped goes on where it was: networks trained and samples drawn with the same
settings are read from DIR. W2 of few samples is mostly their noise: 100000 tell distances above
about 0.05, a million above 0.03.""",
        "scoresens gap --networks FOLDER --samples 1000000",
        {
            "laws-*.png": "truth and induced laws as densities, a picture a data set",
            "residual.png": "the residual over time, and against W2",
            "result.json": "distances and residuals of each network, with intervals",
            "samples/": "histograms and residuals by network (npz)",
            "networks/": "the networks trained, with CONFIG",
        },
    ),
    "sweep": Command(
        run_sweep,
        SweepRun,
        "many samples, many directions or data points, on many devices",
        """\
Which images is each of thousands of samples owed to ("attribution"), or how does it change along
many directions ("sensitivity"), for one seed after another? The work is cut into blocks that fit
the memory; each is on disk as soon as it is made, so that a run that was killed goes on where
it was. SIGTERM ends the block at hand and leaves with code 75: run the same command again.

Settings: question, samples, seeds, memory (GiB for a block), or rows and columns (of a block), mesh
(devices along samples and directions), top (images named; left out, the scores of all), stream (the
data stay in their .npy file); [functional] as for attribute; [directions] classes, images; [data],
checkpoint, steps, base, trace, bandwidth as for sensitivity.

Several processes, on one host or on many, share DIR: give each --coordinator HOST:PORT (the first
one's), --processes N and --process I.""",
        "scoresens sweep configs/sweep.toml --out runs/sweep",
        {
            "store.zarr": "the arrays, with named dimensions; xarray.open_zarr reads them",
            "blocks": "a mark for each block that is whole, with a checksum",
            "study.json": "what the numbers are of",
            "log-*.jsonl": "a line a block, a file a process",
            "result.json": "how many blocks, how large, and the seconds of one",
        },
    ),
    "status": Command(
        run_status,
        StatusRun,
        "how far a sweep is",
        "How far is a sweep? Reads its folder, also while it runs.",
        "scoresens status runs/sweep",
        {},
    ),
    "convert": Command(
        run_convert,
        ConvertRun,
        "bring a model from PyTorch, diffusers or EDM",
        """\
How does a model of another library become a checkpoint here? Writes one safetensors file that the
other commands take as checkpoint, and that needs neither torch nor the library it came from.

  diffusers FOLDER      a pipeline, or its name on the hub; safetensors weights only
  edm FILE.pkl          a pickle of EDM; reading one runs what its author wrote: --trust-pickle
  torch MODULE:FUNCTION a function that returns a torch module, called as module(x [1, C, H, W],
                        time [1]); say how it was trained by --scheduler, or by --process,
                        --predicts and --sees""",
        "scoresens convert diffusers my-pipeline --out runs/mine",
        {
            "model.safetensors": "the checkpoint; name its path in the other settings",
            "result.json": "shape, parameters, process, what the network predicts and sees",
        },
    ),
    "residual": Command(
        run_residual,
        ResidualRun,
        "how far an image model is from being a score",
        """\
Is a network the score of any noised law? A score obeys the Fokker-Planck equation, and is the
gradient of a log-density. Measures both failings of a checkpoint at noised data, by noise level:
the residual of the score's equation relative to the score's rate of change (0: obeyed), and the
antisymmetric part of the score's Jacobian as a share of the whole (0: a gradient); and that of the
denoiser, where no identity hides it at high noise.

Settings, all optional (without CONFIG, the bundled digits): [data] as for train; checkpoint
("digits", or a path), levels (noise levels, rising), count (noised data points a level), seed,
trace ("exact", or "hutchinson": for large images, a random probe a point, which adds its own
spread to the numbers).""",
        "scoresens residual configs/residual.toml",
        {
            "report.png": "residual and antisymmetric part over noise levels",
            "result.json": "the same numbers, with 95 % intervals",
        },
    ),
}
