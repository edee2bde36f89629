"""The command `convert`, and the other commands on what it wrote."""

import json

import jax
import numpy as np
import pytest
from command_line import scoresens, settings_file
from flax import nnx
from safetensors.numpy import load_file, save_file

from scoresens import importers
from scoresens.cli.convert import _load
from scoresens.importers.unet2d import UNet2D, checkpoint_of

pytestmark = pytest.mark.slow  # commands from end to end

CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4],
    "down_block_types": ["AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 2,
}
SCHEDULER = {"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"}
RUN = "count = 8\nsteps = 4\n[data]\nname = 'digits'\ncount = 60\n"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder as diffusers writes one, of a tiny network that was never trained."""
    folder = tmp_path_factory.mktemp("pipeline")
    for part, file, content in (
        ("unet", "config.json", CONFIG),
        ("scheduler", "scheduler_config.json", SCHEDULER),
    ):
        (folder / part).mkdir()
        (folder / part / file).write_text(json.dumps(content))
    network = UNet2D(CONFIG, rngs=nnx.Rngs(0))
    tensors = {name: x.astype(np.float32) for name, x in checkpoint_of(network).items()}
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def converted(pipeline, tmp_path_factory):
    ran = scoresens("convert", "diffusers", pipeline, out=tmp_path_factory.mktemp("converted"))
    assert ran.code == 0, ran.told
    return ran


def test_convert_tells_what_it_found(pipeline, converted):
    assert converted.files == {"model.safetensors", "result.json"}
    found = converted.result
    assert found["shape"] == [8, 8, 1]
    assert found["process"] == "DiscreteVP"
    assert (found["predicts"], found["sees"], found["network"]) == ("v", "step", "native")
    network = UNet2D(CONFIG, rngs=nnx.Rngs(0))
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(network))
    assert "8 x 8 x 1" in converted.printed
    foreign = importers.from_diffusers(pipeline)
    loaded, about = importers.load(converted.out / "model.safetensors")
    assert about["source"] == str(pipeline)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(foreign), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_class_that_there_is_not_is_refused_before_anything_is_written(pipeline, tmp_path):
    ran = scoresens("convert", "diffusers", pipeline, "--label", "10", out=tmp_path)
    assert ran.code == 1 and ran.files == set()
    assert "takes no conditioning, got [[]]" in ran.told and "Tracer" not in ran.told


@pytest.mark.parametrize("command", ["attribute", "sensitivity", "counterfactual", "sample"])
def test_commands_run_on_a_converted_model(converted, tmp_path, command):
    change = "[change]\nkind = 'add'\nclasses = ['3']\n"
    text = {"attribute": RUN, "sample": "count = 8\nsteps = 4\n"}.get(command, RUN + change)
    config = settings_file(
        tmp_path, f"checkpoint = '{converted.out / 'model.safetensors'}'\n{text}"
    )
    ran = scoresens(command, config, out=tmp_path / "out")
    assert ran.code == 0, ran.told
    assert ran.result["count"] == 8
    assert any(file.endswith(".png") for file in ran.files)
    if command != "sample":
        assert "was converted: nothing tells what it was trained on" in ran.told


def test_a_converted_model_is_not_fine_tuned(converted, tmp_path):
    text = (
        f"checkpoint = '{converted.out / 'model.safetensors'}'\n{RUN}"
        "[change]\nkind = 'add'\nclasses = ['3']\n"
        "[finetune]\nsteps = 2\nbatch_size = 4\nlearning_rate = 1e-3\nwarmup = 1\n"
    )
    ran = scoresens("validate", settings_file(tmp_path, text), out=tmp_path / "out")
    assert ran.code == 2
    assert "a converted model cannot be fine-tuned here" in ran.told


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        (["diffusers", "nowhere/at/all"], 1, "there is no folder nowhere/at/all"),
        (["edm", "some.pkl"], 1, "--trust-pickle"),
        (["torch", "math:floor"], 2, "a torch module needs --shape"),
        (["torch", "floor", "--shape", "2"], 2, "package.module:function, got 'floor'"),
        (["torch", "math:floor", "--shape", "0"], 2, "shape must be of numbers of at least 1"),
        (["torch", "no_such:thing", "--shape", "2"], 2, "no_such:thing cannot be found from"),
        (["torch", "math:floor", "--shape", "2", "--sees", "step"], 2, "'step' is of a DiscreteVP"),
        (
            ["torch", "math:floor", "--shape", "2", "--scheduler", __file__],
            2,
            "test_convert.py is damaged, or no JSON in UTF-8",
        ),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path, arguments, code, says):
    ran = scoresens("convert", *arguments, out=tmp_path)
    assert ran.code == code
    assert says in ran.told
    assert ran.files == set()


MODULE = """
import torch

def denoiser():
    class Shrink(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([0.5, 0.5]))

        def forward(self, x, sigma):
            return self.scale * x / (1 + sigma[:, None] ** 2)

    return Shrink()
"""


def test_a_torch_module_named_by_its_function(torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_module_of_the_test.py").write_text(MODULE)
    save_file({"scale": np.array([0.25, 1.0], np.float32)}, tmp_path / "w.safetensors")
    named = ["torch", "a_module_of_the_test:denoiser", "--shape", "2"]
    ran = scoresens("convert", *named, "--weights", "w.safetensors", out=tmp_path / "out")
    assert ran.code == 0, ran.told
    foreign, _ = importers.load(tmp_path / "out" / "model.safetensors")
    x = np.array([1.0, 3.0])
    expected = (np.array([0.25, 1.0]) * x / (1 + 2.0**2) - x) / 2.0**2
    np.testing.assert_allclose(foreign.score(2.0, jax.numpy.asarray(x)), expected, rtol=1e-6)
    save_file({"scale": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    ran = scoresens("convert", *named, "--weights", "w.safetensors", out=tmp_path / "out")
    assert ran.code == 2
    assert "w.safetensors does not fit the module" in ran.told


def test_conditioning_that_is_no_array_is_refused_in_words_of_its_own(pipeline, tmp_path):
    file = tmp_path / "text.npy"
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    given = ["convert", "diffusers", pipeline, "--conditioning", file]
    ran = scoresens(*given, out=tmp_path / "out")
    assert ran.code == 2 and "allow_pickle" not in ran.told
    assert "text.npy is no .npy file: it begins with b'versio'" in ran.told
    np.savez(tmp_path / "text.npz", np.ones(2))
    given[-1] = tmp_path / "text.npz"
    ran = scoresens(*given, out=tmp_path / "out")
    assert ran.code == 2 and "text.npz is no .npy file: it begins with b'PK" in ran.told


def tied(torch):
    """A module whose second layer has the kernel of the first."""

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
            self.last.weight = self.first.weight

    return Tied()


def test_weights_that_are_saved_once_under_two_names(torch, tmp_path):
    from safetensors.torch import save_model

    theirs, ours, path = tied(torch), tied(torch), tmp_path / "tied.safetensors"
    save_model(theirs, str(path))
    assert len(load_file(path)) == 3
    _load(ours, path)
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], tensor)
    ours.last.weight = torch.nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(
        ValueError, match=r"tied\.safetensors does not fit .* lacks \['last\.weight'\]"
    ):
        _load(ours, path)


def test_weights_of_bfloat16(torch, tmp_path):
    from safetensors.torch import save_file as save_torch

    module, path = torch.nn.Linear(2, 1), tmp_path / "half.safetensors"
    kernel, bias = torch.tensor([[0.25, -3.0]]), torch.tensor([1.5])
    save_torch({"weight": kernel.bfloat16(), "bias": bias.bfloat16()}, path)
    _load(module, path)
    assert torch.equal(module.weight, kernel) and torch.equal(module.bias, bias)
    assert module.weight.dtype == torch.float32
    save_torch({"weight": kernel.bfloat16(), "bias": bias.to(torch.float8_e4m3fn)}, path)
    with pytest.raises(ValueError, match=r"half\.safetensors: tensor bias is of dtype F8_E4M3"):
        _load(module, path)
    save_torch({"weight": kernel, "bias": bias, "spare": bias.clone()}, path)
    with pytest.raises(ValueError, match=r"it lacks \[\], and has more in \['spare'\]"):
        _load(module, path)
