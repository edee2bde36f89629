"""Whatever a file holds, it is read, or refused by name: nothing is unpickled, run, or written.

Every day a thousand mutated files, the same ones; `pytest tests/test_hostile_files.py --fuzz
1000000` tries a million others.
"""

import functools
import gzip
import importlib.util
import json
import shutil
import struct
import warnings

import hostile
import jax
import numpy as np
import pytest
import zarr
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from random_networks import awakened
from safetensors.numpy import save

from scoresens import datasets, importers, models
from scoresens.cli._config import read as read_settings
from scoresens.cli._config import read_one_of
from scoresens.cli.config import examples
from scoresens.cli.finetune import FinetuneRun
from scoresens.cli.gap import GapRun
from scoresens.cli.halves import HalvesRun
from scoresens.cli.sweep import SweepRun
from scoresens.datasets import streams
from scoresens.importers.unet2d import UNet2D, checkpoint_of
from scoresens.models import ModelSettings, build, checkpoints
from scoresens.models.potential import PotentialMLP, read_potential, write_potential
from scoresens.studies.gap import GRID, read_histograms
from scoresens.sweeps.store import Field, Layout, Store, progress

pytestmark = pytest.mark.usefixtures("unchecked_annotations")
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (3, 4, 4), np.uint8)
LABELS = np.array([3, 0, 200], np.uint8)
LAYOUT = Layout(1, 5, 1, 4, 1)
FIELDS = {"x": Field(("seed", "sample"), (1, 5), "float32")}


# ------------------------------------------------------------------ good files, a folder each


def idx(array):
    return bytes([0, 0, 8, array.ndim, *struct.pack(f">{array.ndim}I", *array.shape)]) + bytes(
        array
    )


def make_idx(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(BYTES), mtime=0))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS % 10))


def make_arrays(folder):
    np.save(folder / "a.npy", BYTES / 255)
    np.savez(folder / "b.npz", images=BYTES, labels=LABELS)
    np.savez_compressed(folder / "c.npz", images=BYTES)
    np.save(folder / "d.npy", np.array([[hostile.Program()]]))
    (folder / "e.npz").write_bytes(hostile.PICKLED)


def make_histograms(folder):
    np.savez_compressed(
        folder / "a.npz", ode_x=np.ones((GRID.bins, GRID.bins), int), grid_axis=GRID.axis
    )


def make_potential(folder):
    write_potential(folder / "blob_w1.npz", PotentialMLP(2, width=4, rngs=nnx.Rngs(0)))


def make_images(folder):
    for name, mode in (("a.png", "L"), ("b.jpg", "RGB"), ("c.gif", "P"), ("d.bmp", "RGB"),
                       ("e.tif", "L"), ("f.webp", "RGB"), ("g.png", "LA")):  # fmt: skip
        Image.fromarray(BYTES[0]).convert(mode).save(folder / name)
    Image.fromarray(BYTES[0].astype(np.uint16) * 257).save(folder / "h.png")
    (folder / "i.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")


def make_zarr(form):
    def make(folder):
        group = zarr.open_group(folder, mode="w", zarr_format=form)
        group.create_array("images", data=BYTES)
        group.create_array("labels", data=LABELS)

    return make


def make_checkpoint(folder):
    model = build(ModelSettings("mlp", 4, 1), (2,), 1.0, key=jax.random.key(0))
    checkpoints.save(folder / "a.safetensors", model, {"data": "x"})
    arrays = {"w": np.ones((2, 3), np.float32), "b": np.ones(2, np.float16)}
    (folder / "b.safetensors").write_bytes(save(arrays))
    (folder / "c.safetensors").write_bytes(hostile.PICKLED)


PIPELINE = {
    "_class_name": "UNet2DModel", "sample_size": 4, "in_channels": 1, "out_channels": 1,
    "block_out_channels": [4, 4], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 2,
    "attention_head_dim": 2, "num_class_embeds": None, "dropout": 0.0, "act_fn": "silu",
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 100, "beta_start": 1e-4,
    "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon", "clip_sample": True,
    "trained_betas": None, "timestep_spacing": "leading", "steps_offset": 0,
}  # fmt: skip


def make_pipeline(folder):
    skeleton = jax.eval_shape(lambda: UNet2D(PIPELINE, rngs=nnx.Rngs(0)))
    (folder / "unet").mkdir()
    weights = {
        name: np.asarray(x) for name, x in checkpoint_of(awakened(skeleton, np.float32)).items()
    }
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(save(weights))
    (folder / "unet" / "config.json").write_text(json.dumps(PIPELINE))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))


def make_converted(folder):
    (folder / "pipeline").mkdir()
    make_pipeline(folder / "pipeline")
    importers.save(folder / "a.safetensors", importers.from_diffusers(folder / "pipeline"), {})
    shutil.rmtree(folder / "pipeline")


def make_toml(*stems):
    def make(folder):
        for stem in stems:
            (folder / f"{stem}.toml").write_text(examples()[stem])

    return make


def make_sweep(folder):
    Store(folder, FIELDS, LAYOUT, {}, {"question": "a test"}).write(
        LAYOUT.blocks()[0], {"x": np.ones((1, 4), np.float32)[0]}, seconds=1.0
    )


def make_pickle(folder):
    (folder / "a.pkl").write_bytes(hostile.PICKLED)


def make_tables(folder):
    rows = ["1.5,50,a,3", "1.7,70,b,4", '1.9,60,"a",5', "2e-3,-6,c,6"]
    text = "\n".join(['height,"weight, kg",class,target', *rows, ""])
    (folder / "a.csv").write_text(text)
    (folder / "b.csv").write_text("\ufeffx,y\r\n1,2\r\n2,3\r\n4,4\r\n")
    (folder / "c.csv").write_bytes(hostile.PICKLED)


def make_parquet(folder):
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    columns = {"x": [1, 2, 4, 8], "y": [0.5, 1.0, 0.25, 2.0], "class": ["a", "b", "a", "a"]}
    table = pyarrow.table(columns)
    parquet.write_table(table, folder / "a.parquet")
    parquet.write_table(table, folder / "b.parquet", compression="zstd", row_group_size=2)


# ------------------------------------------------------------------ and their readers


def in_memory(path):
    datasets.load(str(path))


def by_rows(path):
    streams.stream(path)[:]


def as_series(path):
    datasets.load(str(path), window=2)


def as_sweep(folder):
    progress(folder)
    store = Store(folder, FIELDS, LAYOUT, {}, {"question": "a test"})
    [store.whole(block) for block in LAYOUT.blocks()]


def settings_of(cls):
    return lambda path: read_settings(path, cls)


VALIDATE = {"finetune": FinetuneRun, "halves": HalvesRun}
READERS = {  # the files, who reads them, and whether one by one or all together
    "IDX": (make_idx, lambda folder: datasets.load("mnist", folder), True),
    "arrays": (make_arrays, in_memory, False),
    "arrays by rows": (make_arrays, by_rows, False),
    "histograms": (make_histograms, read_histograms, False),
    "potentials": (make_potential, read_potential, False),
    "images": (make_images, in_memory, True),
    "tables": (make_tables, in_memory, False),
    "series": (make_tables, as_series, False),
    "Zarr 2": (make_zarr(2), in_memory, True),
    "Zarr 3": (make_zarr(3), by_rows, True),
    "checkpoints": (make_checkpoint, models.load, False),
    "tensors": (make_checkpoint, checkpoints.read_tensors, False),
    "converted": (make_converted, importers.load, False),
    "pipelines": (make_pipeline, importers.from_diffusers, True),
    "settings": (make_toml("sweep"), settings_of(SweepRun), False),
    "settings of gap": (make_toml("gap"), settings_of(GapRun), False),
    "settings of validate": (
        make_toml("digits-finetune", "digits-halves"),
        lambda path: read_one_of(path, "experiment", VALIDATE),
        False,
    ),
    "sweeps": (make_sweep, as_sweep, True),
    "pickles": (make_pickle, functools.partial(importers.from_edm, trust=False), False),
}

if importlib.util.find_spec("pyarrow"):
    READERS["Parquet"] = (make_parquet, in_memory, False)

SLOW = ("checkpoints", "converted", "pipelines")  # that build a network: fewer of these
ALSO = {"pipelines": ("UNet2DModel",)}  # a file may be named by the class it configures


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The good files of each reader, made once."""

    @functools.cache
    def folder(name):
        path = tmp_path_factory.mktemp("good")
        READERS[name][0](path)
        return path

    return folder


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused_by_name(name, good, tmp_path, pytestconfig):
    _, read, together = READERS[name]
    source, folder = good(name), tmp_path / "mutated"
    shutil.copytree(source, folder)
    files = sorted(file.relative_to(source) for file in source.rglob("*") if file.is_file())
    asked = pytestconfig.getoption("--fuzz")
    count = max(1, (asked or 1000) // len(READERS) // (4 if name in SLOW else 1))

    @settings(
        max_examples=count, derandomize=not asked, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(files), hostile.CHANGES)
    def every(file, changes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = (source / file).read_bytes()
            (folder / file).write_bytes(hostile.changed(file.name, whole, changes))
            path = folder if together else folder / file
            escape = hostile.escape(read, path, (folder.name, *ALSO.get(name, ())))
            (folder / file).write_bytes(whole)
            assert escape is None

    every()


def test_the_guard_sees_what_no_reader_does(tmp_path):
    """And so does not pass whatever it is given."""
    import pickle

    file = tmp_path / "a.npy"
    file.write_bytes(hostile.PICKLED)
    for read, says in (
        (lambda path: pickle.loads(path.read_bytes()), "pickle.find_class"),
        (lambda path: (tmp_path.parent / "outside").write_text(""), "outside"),
        (lambda path: {}["x"], "KeyError"),
        (lambda path: int("x"), "without the file's name"),
    ):
        assert says in str(hostile.escape(read, file, ("a.npy",)))
    assert hostile.escape(lambda path: path.read_bytes(), file, ("a.npy",)) is None


def test_mutations_reach_every_value_of_a_text():
    tree = {"a": [1, {"b": 2}], "c": "x"}
    places = list(hostile._places(tree, ()))
    assert len(places) == 6 and len(set(places)) == 6
    content = json.dumps(tree).encode()
    values = range(len(hostile.ODD_VALUES))
    made = {
        hostile.changed("a.json", content, [hostile.Change("value", place / 6, what)])
        for place in range(6)
        for what in values
    }
    assert len(made) > 5 * len(values)
