"""EDM's pickles are read without EDM's repository, and only for those who trust them."""

import os
import pickle
import sys
import types
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import scoresens
from safetensors.numpy import save_file

import scoresens as ss
from scoresens import importers
from scoresens.importers._pickles import about_edm, read_pickle

SOURCE = """
import dnnlib
import numpy as np
import torch
from torch_utils import misc, persistence

@persistence.persistent_class
class Linear(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(width, width))
        self.register_buffer("shift", torch.randn(width))

    def forward(self, x):
        return x @ self.weight.t() + self.shift

class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x / np.sqrt(4)

@persistence.persistent_class
class Precond(torch.nn.Module):
    def __init__(self, side, channels, kind="Linear"):
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = side, channels, 0
        self.sigma_min, self.sigma_max, self.sigma_data = 0, float("inf"), 0.5
        self.options = dnnlib.EasyDict(scale=3.0)
        self.model = globals()[kind](side)

    def forward(self, x, sigma, class_labels=None):
        assert isinstance(self.model, Linear)
        scale = misc.const_like(x, [self.options.scale])
        return Halved.apply(self.model(x)) * scale / sigma.reshape(-1, 1, 1, 1)

@persistence.persistent_class
class Loss:
    def __init__(self):
        self.sigma_data = 0.5
"""

NAMES = ("torch_utils", "torch_utils.misc", "torch_utils.persistence", "dnnlib", "dnnlib.util")


class EasyDict(dict):
    """As EDM has it."""

    __getattr__ = dict.__getitem__


EasyDict.__module__ = "dnnlib.util"


def rebuilt(meta):
    """What EDM calls `_reconstruct_persistent_obj`: named in the files, not called here."""
    raise AssertionError(meta)


rebuilt.__module__, rebuilt.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"


def persistent(cls):
    """A class whose objects are pickled with SOURCE."""

    def reduced(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE}
        state = dict(self.__dict__)
        return rebuilt, ({**meta, "class_name": cls.__name__, "state": state},)

    cls.__reduce__ = reduced
    return cls


@contextmanager
def repository(monkeypatch, torch):
    """What of EDM's repository takes part in the writing of a pickle."""
    contents = {
        "torch_utils.persistence": {
            "persistent_class": persistent,
            "_reconstruct_persistent_obj": rebuilt,
        },
        "torch_utils.misc": {"const_like": lambda like, x: torch.tensor(x, dtype=like.dtype)},
        "torch_utils": {},
        "dnnlib.util": {"EasyDict": EasyDict},
        "dnnlib": {"EasyDict": EasyDict},
    }
    with monkeypatch.context() as patch:
        for name, items in contents.items():
            module = types.ModuleType(name)
            module.__dict__.update(items)
            patch.setitem(sys.modules, name, module)
        yield


@pytest.fixture
def written(monkeypatch, tmp_path, torch):
    """(change of the network, what to pickle of it) -> the file, x and sigma, the output there."""

    def write(change=lambda network: network, wrap=lambda network, loss: {"ema": network}):
        path, space = tmp_path / "network.pkl", dict[str, Any](__name__="networks")
        with repository(monkeypatch, torch):
            torch.manual_seed(0)
            exec(SOURCE, space)
            network = space["Precond"](4, 3)
            x, sigma = torch.randn(2, 3, 4, 4), torch.tensor([0.5, 2.0])
            expected = network(x, sigma).detach().numpy()
            path.write_bytes(pickle.dumps(wrap(change(network), space["Loss"]())))
        return path, (x, sigma), expected

    return write


class Making:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


# ------------------------------------------------------------------ what is read


def test_networks_say_what_they_said(written):
    path, inputs, expected = written()
    module = read_pickle(path, trust=True)
    np.testing.assert_array_equal(module(*inputs).numpy(), expected)


def test_their_score_is_that_of_a_denoiser(written, tmp_path):
    path, (x, sigma), denoised = written()
    foreign = importers.from_edm(path, trust=True)
    assert foreign.shape == (4, 4, 3)
    for x, sigma, denoised in zip(x.numpy(), sigma.numpy(), denoised, strict=True):  # noqa: B020
        expected = np.moveaxis((denoised - x) / sigma**2, 0, -1)
        found = foreign.score(float(sigma), jnp.asarray(np.moveaxis(x, 0, -1)))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="one of the 0 classes"):
        importers.from_edm(path, trust=True, label=3)


def test_the_command_converts_them_for_those_who_trust(written, tmp_path):
    path, *_ = written()
    ran = scoresens("convert", "edm", path, out=tmp_path / "out")
    assert ran.code == 1 and "--trust-pickle" in ran.told
    ran = scoresens("convert", "edm", path, "--trust-pickle", out=tmp_path / "out")
    assert ran.code == 0, ran.told
    foreign, about = importers.load(tmp_path / "out" / "model.safetensors")
    assert (foreign.shape, about["kind"]) == ((4, 4, 3), "edm")


def test_a_network_of_pfgmpp_keeps_its_noise(written, tmp_path):
    path, *_ = written()
    asked = ("convert", "edm", path, "--trust-pickle", "--degrees-of-freedom", "128")
    ran = scoresens(*asked, out=tmp_path / "out")
    assert ran.code == 0, ran.told
    foreign, _ = importers.load(tmp_path / "out" / "model.safetensors")
    assert foreign.process == ss.EDM(noise=ss.StudentT(128.0))
    with pytest.raises(ValueError, match="nu must be"):
        importers.from_edm(path, trust=True, degrees_of_freedom=-1.0)


def test_nothing_of_edm_stays_behind(written):
    path, *_ = written()
    before = dict(sys.modules)
    read_pickle(path, trust=True)
    assert not set(NAMES) & set(sys.modules)
    assert not [name for name in set(sys.modules) - set(before) if "pickled" in name]


def test_networks_are_for_evaluation_in_float32_on_the_cpu(written, torch):
    path, *_ = written(lambda network: network.half().train().requires_grad_(True))
    module = read_pickle(path, trust=True)
    assert not any(part.training for part in module.modules())
    for tensor in (*module.parameters(), *module.buffers()):
        assert (tensor.dtype, tensor.device.type) == (torch.float32, "cpu")
        assert not tensor.requires_grad


def test_tensors_of_other_devices_come_to_the_cpu(written, monkeypatch, torch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path, inputs, expected = written()
    assert b"cuda:0" in path.read_bytes()
    np.testing.assert_array_equal(read_pickle(path, trust=True)(*inputs).numpy(), expected)


def test_a_network_alone_will_do(written):
    path, inputs, expected = written(wrap=lambda network, loss: network)
    np.testing.assert_array_equal(read_pickle(path, trust=True)(*inputs).numpy(), expected)


def test_what_lies_beside_the_network_does_not_hinder(written):
    def snapshot(network, loss):
        kept = EasyDict(path="images.zip")
        return {"ema": network, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": kept}

    path, inputs, expected = written(wrap=snapshot)
    np.testing.assert_array_equal(read_pickle(path, trust=True)(*inputs).numpy(), expected)


def test_what_the_network_says_about_itself(written, torch):
    path, *_ = written()
    told = {"shape": (3, 4, 4), "label_dim": 0, "sigma_min": 0.0, "sigma_max": float("inf")}
    module = read_pickle(path, trust=True)
    assert about_edm(module) == {**told, "sigma_data": 0.5}
    del module.sigma_data  # VPPrecond, VEPrecond and iDDPMPrecond have none
    assert about_edm(module) == told
    with pytest.raises(ValueError, match=r"Linear.*EDMPrecond"):
        about_edm(torch.nn.Linear(2, 2))


def test_the_repository_itself_is_used_where_it_is(written, monkeypatch, torch):
    path, *_ = written()
    made = torch.nn.Linear(1, 1)
    with repository(monkeypatch, torch):
        persistence = sys.modules["torch_utils.persistence"]
        monkeypatch.setattr(persistence, "_reconstruct_persistent_obj", lambda meta: made)
        assert read_pickle(path, trust=True) is made
        assert sys.modules["torch_utils.persistence"] is persistence


def test_other_packages_of_the_same_name_do_not_hinder(written, monkeypatch):
    path, inputs, expected = written()
    other = types.ModuleType("torch_utils")
    monkeypatch.setitem(sys.modules, "torch_utils", other)
    np.testing.assert_array_equal(read_pickle(path, trust=True)(*inputs).numpy(), expected)
    assert sys.modules["torch_utils"] is other


# ------------------------------------------------------------------ what is refused


def test_nobody_runs_a_pickle_unasked(monkeypatch, tmp_path):
    path, folder = tmp_path / "network.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"ema": Making(folder)}))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"program.*your rights.*--trust-pickle.*safetensors"):
        read_pickle(path, trust=False)
    assert not folder.exists()
    with pytest.raises(ValueError, match="--trust-pickle"):  # nobody has looked for the file
        read_pickle(tmp_path / "none.pkl", trust=False)


def test_that_pickle_would_have_run(torch, tmp_path):
    path, folder = tmp_path / "network.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"ema": Making(folder)}))
    with pytest.raises(ValueError, match='no network: its "ema" is a NoneType'):
        read_pickle(path, trust=True)
    assert folder.is_dir()


def test_without_torch_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"scoresens\[torch\]"):
        read_pickle(tmp_path / "network.pkl", trust=True)


def test_no_file_is_told(torch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pkl"):
        read_pickle(tmp_path / "none.pkl", trust=True)


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_damaged_files_are_refused(written, kept):
    path, *_ = written()
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"network\.pkl is damaged, no pickle, or needs"):
        read_pickle(path, trust=True)
    assert not set(NAMES) & set(sys.modules)


def test_other_files_are_refused(torch, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_text("some words about a network")
    with pytest.raises(ValueError, match="damaged, no pickle"):
        read_pickle(path, trust=True)
    save_file({"weight": np.ones(3)}, path)
    with pytest.raises(ValueError, match="safetensors file, no pickle"):
        read_pickle(path, trust=True)


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        ({"net": 1, "step": 2}, r'expected one at "ema".*net.*step'),
        ({"ema": {"weight": 1}}, 'its "ema" is a dict'),
        ([1, 2], "it is a list"),
    ],
)
def test_files_without_a_network_are_refused(torch, tmp_path, whole, said):
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps(whole))
    with pytest.raises(ValueError, match=said):
        read_pickle(path, trust=True)


def test_sources_that_need_more_than_there_is_are_told(written):
    path, *_ = written()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"import misc, persistence", b"import miss, persistence"))
    with pytest.raises(ValueError, match=r"ImportError: .*miss"):
        read_pickle(path, trust=True)
