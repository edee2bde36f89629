"""Sweeps: the numbers of the verbs, whatever the blocks and devices, and nothing lost."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
import zarr
from command_line import scoresens, settings_file

import scoresens as ss
from scoresens import cli, sweeps
from scoresens.cli._settings import route_of
from scoresens.flow.starts import fold
from scoresens.models import pretrained
from scoresens.sensitivity.functionals import inner_product
from scoresens.sweeps.questions import _of_rows
from scoresens.sweeps.store import Field, Layout, Store, progress

PROCESS = ss.VP()
SOLVE = ss.Solve(steps=4)
KEYS = [jax.random.key(0), jax.random.key(7)]
SAMPLES = 11


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return ss.Points(jnp.asarray(rng.normal(size=(20, 3))), bandwidth=0.4)


@pytest.fixture(scope="module")
def score(data):
    return ss.exact_score(PROCESS, data)


def on_host(data):
    return ss.Points.on_host(np.asarray(data.points), bandwidth=float(data.bandwidth))


def directions(data):
    """Of all the points together and of some, each alone."""
    rng, which = np.random.default_rng(1), [3, 0, 7, 19, 4]
    together = ss.reweight(data, rng.uniform(0.1, 1, size=(5, 20)))
    return together + ss.move(data, which, 3 * rng.normal(size=(5, 3)))


def question(kind, data, score, mesh, base=None, top=None, **options):
    base = data if base is None else base
    options |= {"base": base, "mesh": mesh, "solve": SOLVE, "prior": None if base is data else data}
    if kind == "sensitivity":
        return sweeps.sensitivities(PROCESS, score, directions(data), **options)
    functional = inner_product(jnp.ones(3))
    return sweeps.attributions(PROCESS, score, data, functional, top=top, **options)


def swept(folder, asked, layout, **options):
    store = Store(folder, sweeps.fields_of(asked, layout), layout, {}, {"of": "a test"})
    ran = sweeps.run(asked, KEYS, store, **options)
    return ran, {name: np.asarray(store.arrays[name]) for name in store.fields}


@pytest.fixture(scope="module")
def asked(data, score):
    """Of one device: its program is compiled once."""
    return question("sensitivity", data, score, mesh_named("one device"))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("samples", "across")]
EACH_MESH = pytest.mark.parametrize("name", ["one device", "both", *SLOW])
MESHES = {"one device": (1, 1), "samples": (8, 1), "both": (4, 2), "across": (1, 8)}


def mesh_named(name):
    shape = MESHES[name]
    return sweeps.mesh_of(shape, jax.devices()[: shape[0] * shape[1]])


@pytest.mark.slow
@EACH_MESH
def test_tangents_are_those_of_one_call_whatever_the_mesh(tmp_path, data, score, name):
    mesh = mesh_named(name)
    asked = question("sensitivity", data, score, mesh)
    _, found = swept(tmp_path, asked, Layout(2, SAMPLES, 5, 8, 2))
    for seed, key in enumerate(KEYS):
        noise = PROCESS.sample_prior((SAMPLES, 3), key=jax.random.split(key)[0])
        whole = ss.sample_sensitivity(
            PROCESS, score, directions(data), noise, base=data, solve=SOLVE
        )
        np.testing.assert_allclose(found["x"][seed], whole.x, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found["tangent"][seed], whole.tangent, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("top", [None, 4])
@EACH_MESH
def test_scores_are_those_of_one_call_whatever_the_mesh(tmp_path, data, score, name, top):
    mesh = mesh_named(name)
    asked = question("attribution", data, score, mesh, top=top)
    _, found = swept(tmp_path, asked, Layout(2, SAMPLES, 1, 8, 1))
    noise = PROCESS.sample_prior((SAMPLES, 3), key=jax.random.split(KEYS[1])[0])
    whole = ss.attribute(
        PROCESS, score, data, inner_product(jnp.ones(3)), noise, base=data, top=top, solve=SOLVE
    )
    for field in found:
        expected = getattr(whole, field)
        np.testing.assert_allclose(found[field][1], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_probes_belong_to_samples_and_not_to_blocks(tmp_path, data, score):
    mesh = mesh_named("one device")
    asked = question("sensitivity", data, score, mesh, base=ss.Smoothed(0.4))
    many, few = Layout(1, SAMPLES, 5, 3, 5), Layout(1, SAMPLES, 5, SAMPLES, 2)
    (_, a), (_, b) = (
        swept(tmp_path / name, asked, layout) for name, layout in (("many", many), ("few", few))
    )
    chex.assert_trees_all_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sensitivity", "attribution"])
def test_brownian_paths_belong_to_samples_and_not_to_blocks(tmp_path, data, score, kind):
    route = ss.Diffusion(jax.random.key(5))
    asked = question(kind, data, score, mesh_named("one device"), route=route)
    columns = 5 if kind == "sensitivity" else 1
    many, few = Layout(1, SAMPLES, columns, 8, columns), Layout(1, SAMPLES, columns, SAMPLES, 1)
    (_, a), (_, b) = (
        swept(tmp_path / name, asked, layout) for name, layout in (("many", many), ("few", few))
    )
    chex.assert_trees_all_close(a, b, rtol=1e-9, atol=1e-9)
    _, flow = swept(tmp_path / "flow", question(kind, data, score, mesh_named("one device")), many)
    assert np.abs(np.asarray(a["x"]) - np.asarray(flow["x"])).min() > 1e-6


def test_the_same_devices_in_another_order_of_work_give_the_same_bits(tmp_path, data, score):
    mesh, layout = mesh_named("samples"), Layout(2, SAMPLES, 5, 8, 2)
    asked = question("sensitivity", data, score, mesh)
    _, whole = swept(tmp_path / "whole", asked, layout)
    for share in ((1, 2), (0, 2)):  # two processes, one after the other
        ran, found = swept(tmp_path / "shared", asked, layout, share=share)
        assert ran.blocks == 6
    chex.assert_trees_all_equal(found, whole)


def test_a_sweep_goes_on_where_it_was(tmp_path, asked):
    layout = Layout(2, SAMPLES, 5, 4, 3)
    _, whole = swept(tmp_path / "whole", asked, layout)
    made, found = [], {}
    for _ in range(20):
        ran, found = swept(tmp_path / "cut", asked, layout, stopping=lambda: True)
        made.append(ran.blocks)
        if not ran.left:
            break
    assert made == [1] * len(layout.blocks())
    chex.assert_trees_all_equal(found, whole)


def damage(store, how):
    block = store.layout.blocks()[3]
    mark = store.marks / f"{block.name}.json"
    if how == "no mark":
        mark.unlink()
    elif how == "half a mark":
        mark.write_text(mark.read_text()[:20])
    elif how == "other numbers":
        store.arrays["tangent"][0, 4:8, 3:5, 0] = 1.0
    else:
        chunk = store.folder / "store.zarr" / "tangent" / "c" / "0" / "1" / "1" / "0"
        content = chunk.read_bytes()
        chunk.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["no mark", "half a mark", "other numbers", "half a chunk"])
def test_damaged_blocks_are_found_and_made_again(tmp_path, asked, how):
    layout = Layout(1, SAMPLES, 5, 4, 3)
    _, whole = swept(tmp_path, asked, layout)
    store = Store(tmp_path, sweeps.fields_of(asked, layout), layout, {}, {"of": "a test"})
    damage(store, how)
    ran, found = swept(tmp_path, asked, layout)
    assert ran.blocks == 1
    chex.assert_trees_all_equal(found, whole)


STUDY = {"study": {"question": "a test"}, "layout": Layout(1, SAMPLES, 5, 4, 3)._asdict()}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("study.json", ""),
        ("study.json", "[]"),
        ("study.json", json.dumps(STUDY)[:-9]),
        ("study.json", json.dumps(STUDY | {"layout": {}})),
        ("study.json", json.dumps(STUDY | {"layout": [1, 2]})),
        ("study.json", json.dumps(STUDY | {"study": None})),
        ("study.json", json.dumps(STUDY | {"layout": STUDY["layout"] | {"rows": 0}})),
        ("study.json", json.dumps(STUDY | {"layout": STUDY["layout"] | {"rows": "4"}})),
        ("0-0-0.json", "{"),
        ("0-0-0.json", "7"),
        ("0-0-0.json", '{"seconds": "long"}'),
        ("0-0-0.json", '{"seconds": NaN}'),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, file, content):
    """By how far it is; where the study is damaged, by who would write there too."""
    (tmp_path / "blocks").mkdir()
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    assert progress(tmp_path)["blocks"] == len(Layout(**STUDY["layout"]).blocks())
    place = tmp_path / "blocks" / file if file != "study.json" else tmp_path / file
    place.write_text(content)
    with pytest.raises(ValueError, match=file):
        progress(tmp_path)
    if place.parent == tmp_path:
        with pytest.raises(ValueError, match=file):
            Store(tmp_path, {}, Layout(**STUDY["layout"]), {}, {})


PICKLED = {
    "zarr_format": 2,
    "shape": [1, SAMPLES],
    "chunks": [1, 4],
    "dtype": "|O",
    "fill_value": "",
    "order": "C",
    "compressor": None,
    "filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}],
}


@pytest.mark.parametrize("how", ["no metadata", "another shape", "pickles"])
def test_a_damaged_store_is_named(tmp_path, how):
    layout = Layout(1, SAMPLES, 1, 4, 1)
    fields = {"x": Field(("seed", "sample"), (1, SAMPLES), "float32")}
    Store(tmp_path, fields, layout, {}, {})
    path = tmp_path / "store.zarr"
    if how == "no metadata":
        (path / "x" / "zarr.json").write_text("{")
    elif how == "another shape":
        zarr.create_array(path / "x", shape=(1, SAMPLES + 1), dtype="float32", overwrite=True)
    else:
        shutil.rmtree(path)
        (path / "x").mkdir(parents=True)
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / "x" / ".zarray").write_text(json.dumps(PICKLED))
    with pytest.raises(
        ValueError, match=r"store\.zarr(: x should be| is damaged| keeps its chunks)"
    ):
        Store(tmp_path, fields, layout, {}, {})


def test_a_full_disk_loses_nothing(tmp_path, asked, monkeypatch):
    layout = Layout(1, SAMPLES, 5, 4, 3)
    _, whole = swept(tmp_path / "whole", asked, layout)
    write, written = Store.write, []

    def until_full(self, block, found, **about):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(block)
        write(self, block, found, **about)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", until_full)
        with pytest.raises(OSError, match="No space left"):
            swept(tmp_path / "full", asked, layout)
    ran, found = swept(tmp_path / "full", asked, layout)
    assert ran.blocks == len(layout.blocks()) - 2
    chex.assert_trees_all_equal(found, whole)


def test_a_store_of_another_study_is_refused(tmp_path, asked):
    layout = Layout(1, SAMPLES, 5, 4, 3)
    fields = sweeps.fields_of(asked, layout)
    Store(tmp_path, fields, layout, {}, {"of": "one"})
    with pytest.raises(
        ValueError, match="holds a study with other settings of of: choose another --out"
    ):
        Store(tmp_path, fields, layout, {}, {"of": "another"})
    with pytest.raises(ValueError, match="holds a study with other settings of rows"):
        Store(tmp_path, fields, layout._replace(rows=5), {}, {"of": "one"})


@pytest.mark.slow
def test_blocks_fit_the_memory(asked):
    assert asked.program is not None
    taken = {n: sweeps.bytes_of(asked, n, 5) for n in (64, 128)}
    layout = sweeps.layout_of(asked, seeds=1, samples=10**6, memory=float(taken[128]))
    assert 100 <= layout.rows <= 140
    assert sweeps.layout_of(asked, seeds=1, samples=9, memory=1e12).rows == 9


@pytest.mark.slow
def test_little_memory_takes_few_directions(asked):
    one = sweeps.bytes_of(asked, 1, 2)
    assert one < sweeps.bytes_of(asked, 1, 3)
    layout = sweeps.layout_of(asked, seeds=1, samples=9, memory=float(one))
    assert (layout.rows, layout.columns) == (1, 2)
    with pytest.raises(ValueError, match=r"a block of 1 samples takes .* give more memory"):
        sweeps.layout_of(asked, seeds=1, samples=9, memory=10.0)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda d, s: sweeps.mesh_of((3, 3)), "3 x 3 wants more than 8 devices"),
        (
            lambda d, s: question("attribution", on_host(d), s, mesh_named("both")),
            "read by one device, the mesh has 8",
        ),
        (
            lambda d, s: sweeps.attributions(PROCESS, s, d, lambda x: x, base=d),
            "of a scalar functional",
        ),
    ],
)
def test_what_cannot_be_swept_is_said(data, score, make, says):
    with pytest.raises(ValueError, match=says):
        make(data, score)


def test_no_communication_inside(data, score):
    mesh = mesh_named("both")
    asked = question("sensitivity", data, score, mesh)
    assert asked.program is not None
    text = asked.program(8, 4).as_text()
    for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert word not in text


# ------------------------------------------------------------------ the command

SETTINGS = """
question = "attribution"
samples = 6
seeds = [0, 1]
rows = 2
mesh = [1, 1]
top = 3
steps = 3
[data]
name = "digits"
count = 100
"""


def opened(folder):
    return xarray.open_zarr(folder / "store.zarr", consolidated=False).load()


@pytest.mark.slow
def test_the_command_and_its_store(tmp_path, capsys):
    config = settings_file(tmp_path, SETTINGS)
    ran = scoresens("sweep", config, out=tmp_path / "out")
    assert ran.code == 0, ran.told
    assert "6 of 6" in ran.printed
    found = opened(ran.out)
    assert dict(found.sizes) | {"seed": 2, "sample": 6, "rank": 3} == dict(found.sizes)
    assert np.isfinite(found.top_values).all() and int(found.top_indices.min()) >= 0
    lines = [json.loads(line) for line in (ran.out / "log-0.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start"] + 6 * ["block"]
    assert ran.result["blocks"] == ran.result["done"] == 6
    assert cli.main(["status", str(ran.out)]) == 0
    assert "6 of 6" in capsys.readouterr().out
    again = scoresens("sweep", config, out=ran.out)
    assert again.code == 0 and opened(ran.out).equals(found)
    other = settings_file(tmp_path, SETTINGS.replace("steps = 3", "steps = 4"))
    refused = scoresens("sweep", other, out=ran.out)
    assert refused.code == 2 and "holds a study with other settings of steps" in refused.told
    assert cli.main(["status", str(tmp_path / "none")]) == 1
    assert "there is no sweep in" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*args, **about):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    ran = scoresens("sweep", settings_file(tmp_path, SETTINGS), out=tmp_path / "out")
    assert ran.code == 1
    assert f"No space left on device (in {tmp_path / 'out'}): blocks that are whole" in ran.told


@pytest.mark.slow
def test_a_sensitivity_names_its_directions(tmp_path):
    text = SETTINGS.replace('"attribution"', '"sensitivity"').replace("top = 3", "columns = 5")
    ran = scoresens("sweep", settings_file(tmp_path, text + "[directions]\nimages = 2\n"),
                    out=tmp_path / "out")  # fmt: skip
    assert ran.code == 0, ran.told
    found = opened(ran.out)
    assert list(found.direction.values)[-3:] == ["class 9", "image 0", "image 1"]
    assert np.isfinite(found.tangent).all()


@pytest.mark.slow
def test_a_sweep_along_the_sde(tmp_path):
    """Samples of `sample_sde`, on paths of each seed's and sample's own; another study than the
    flow's."""
    config = settings_file(tmp_path, 'sampler = "sde"\n' + SETTINGS)
    ran = scoresens("sweep", config, out=tmp_path / "out")
    assert ran.code == 0, ran.told
    process, found = ss.EDM(), opened(ran.out).x
    score = ss.from_denoiser(process, pretrained("digits")[0])
    for seed in (0, 1):
        for_noise, for_paths = jax.random.split(jax.random.key(seed))
        noise = process.sample_prior((6, 8, 8, 1), key=for_noise)
        route = _of_rows(route_of("sde", 0), fold(for_paths, 6))
        x = ss.sample(process, score, noise, route=route, solve=ss.Solve(steps=3)).x
        np.testing.assert_allclose(found.sel(seed=seed), x, rtol=1e-4, atol=1e-5)
    refused = scoresens("sweep", settings_file(tmp_path, SETTINGS), out=ran.out)
    assert refused.code == 2 and "holds a study with other settings of sampler" in refused.told


def test_a_sampler_that_there_is_not(tmp_path):
    config = settings_file(tmp_path, 'sampler = "flow"\n' + SETTINGS)
    ran = scoresens("sweep", config, out=tmp_path / "out")
    assert ran.code == 2 and "sampler: expected 'ode' or 'sde', got 'flow'" in ran.told


@pytest.mark.slow
def test_data_in_a_file_are_streamed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, size=(50, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    zarr.create_array(tmp_path / "images.zarr", data=images, chunks=(16, 8, 8))

    def ran(name, file, more=""):
        text = SETTINGS.replace('name = "digits"\ncount = 100', f'name = "{tmp_path / file}"')
        config = settings_file(tmp_path, "bandwidth = 0.5\n" + more + text)
        return scoresens("sweep", config, out=tmp_path / name)

    whole = ran("whole", "images.npy")
    streamed = ran("streamed", "images.zarr", "stream = true\n")
    assert whole.code == streamed.code == 0, streamed.told
    a, b = opened(whole.out), opened(streamed.out)
    np.testing.assert_array_equal(a.top_indices, b.top_indices)
    np.testing.assert_allclose(a.top_values, b.top_values, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_numbers_in_a_file_are_read_through_once(tmp_path, monkeypatch):
    """For NaN, when a sweep begins: not when it goes on with the same file, but with another."""
    images = np.random.default_rng(0).normal(size=(50, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    text = SETTINGS.replace('name = "digits"\ncount = 100', f'name = "{tmp_path / "images.npy"}"')
    config = settings_file(tmp_path, "bandwidth = 0.5\nstream = true\n" + text)
    asked, real = [], ss.Points.on_host

    def on_host(*given, checked, **options):
        asked.append(checked)
        return real(*given, checked=checked, **options)

    monkeypatch.setattr(ss.Points, "on_host", on_host)
    assert scoresens("sweep", config, out=tmp_path / "out").code == 0
    assert scoresens("sweep", config, out=tmp_path / "out").code == 0
    images[3, 2, 1] = np.nan
    np.save(tmp_path / "images.npy", images)
    ran = scoresens("sweep", config, out=tmp_path / "out")
    assert asked == [False, True, False]
    assert ran.code == 2 and "1 entries that are NaN" in ran.told


def command(config, out, *more):
    program = "import sys; from scoresens.cli import command; sys.exit(command())"
    return [sys.executable, "-c", program, "sweep", str(config), "--out", str(out), *more]


def started(*arguments):
    quick = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(
        command(*arguments),
        env=os.environ | quick,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def until_a_block_is_there(folder, process):
    while not list((folder / "blocks").glob("[0-9]*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_told_to_stop_it_goes_on(tmp_path):
    config = settings_file(tmp_path, SETTINGS.replace("samples = 6", "samples = 60"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    running = started(config, cut)
    until_a_block_is_there(cut, running)
    running.kill()
    running.communicate()
    kept = {file.name: file.read_bytes() for file in (cut / "blocks").glob("[0-9]*.json")}
    running = started(config, cut)
    lines = iter(running.stderr.readline, "")
    assert any("blocks" in line for line in lines)
    running.send_signal(signal.SIGTERM)
    printed, _ = running.communicate()
    assert running.returncode in (0, 75)  # 0: it was done before it was told
    assert running.returncode == 0 or "run it again to go on" in printed
    assert {n: (cut / "blocks" / n).read_bytes() for n in kept} == kept  # none computed twice
    for folder in (cut, whole):
        running = started(config, folder)
        said = running.communicate()
        assert running.returncode == 0, said
    assert opened(cut).identical(opened(whole))


@pytest.mark.slow
def test_two_processes_share_a_sweep(tmp_path):
    config = settings_file(tmp_path, SETTINGS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process"]
    running = [started(config, tmp_path / "two", *several, str(i)) for i in range(2)]
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    alone = started(config, tmp_path / "one")
    alone.communicate()
    assert opened(tmp_path / "two").identical(opened(tmp_path / "one"))
    marks = [json.loads(f.read_text()) for f in (tmp_path / "two" / "blocks").glob("[0-9]*.json")]
    assert sorted(mark["process"] for mark in marks) == [0, 0, 0, 1, 1, 1]


def test_one_of_several_processes_must_say_which(tmp_path):
    config = settings_file(tmp_path, SETTINGS)
    ran = scoresens("sweep", config, "--processes", "2", out=tmp_path / "out")
    assert ran.code == 2
    assert "--coordinator, --processes and --process go together" in ran.told
