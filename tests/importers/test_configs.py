"""Configurations as people have them: what is damaged, of another type or not known is named."""

import json

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from scoresens import importers
from scoresens.importers.configs import read_config
from scoresens.importers.diffusers import weight_files
from scoresens.importers.unet2d import UNet2D, checkpoint_of, malformed, unsupported

UNET = {
    "_class_name": "UNet2DModel", "sample_size": 4, "in_channels": 1, "out_channels": 1,
    "block_out_channels": [4], "down_block_types": ["DownBlock2D"], "norm_num_groups": 2,
    "up_block_types": ["UpBlock2D"], "layers_per_block": 1, "add_attention": False,
}  # fmt: skip
DDPM = {"_class_name": "DDPMScheduler", "num_train_timesteps": 50}


@pytest.fixture(scope="module")
def tensors():
    """Of each configuration: plain, or of ten classes."""

    def made(config):
        named = checkpoint_of(UNet2D(config, rngs=nnx.Rngs(0)))
        return {name: x.astype(np.float32) for name, x in named.items()}

    return {None: made(UNET), 10: made(UNET | {"num_class_embeds": 10})}


@pytest.fixture
def pipeline(tmp_path, tensors):
    """Writes a folder as diffusers does, of a network that was never trained."""

    def write(unet=None, scheduler=None, classes=None):
        config = UNET | {"num_class_embeds": classes} | (unet or {})
        for part, name, content in (
            ("unet", "config", config),
            ("scheduler", "scheduler_config", DDPM | (scheduler or {})),
        ):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / f"{name}.json").write_text(json.dumps(content))
        save_file(tensors[classes], tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
        return tmp_path

    return write


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_changes_nothing(tmp_path, encoding):
    path = tmp_path / "config.json"
    path.write_text('{"a": "ü"}', encoding=encoding)
    assert read_config(path) == {"a": "ü"}


@pytest.mark.parametrize(
    "content, says",
    [
        (b"[1, 2]", r"config\.json holds a list where a configuration belongs"),
        (b"null", r"config\.json holds a NoneType where a configuration belongs"),
        (b"", r"config\.json is damaged, or no JSON in UTF-8"),
        (b'{"a": ', r"config\.json is damaged, or no JSON in UTF-8"),
        (b'{"a": "\xfc"}', r"config\.json is damaged, or no JSON in UTF-8: 'utf-8' codec"),
        (b"[" * 100_000, r"config\.json is damaged"),
        (b"\x80\x04\x95pickle", r"config\.json is damaged"),
    ],
)
def test_what_is_no_configuration_is_named(pipeline, content, says):
    folder = pipeline()
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        kept = (folder / part).read_bytes()
        (folder / part).write_bytes(content)
        with pytest.raises(ValueError, match=says):
            importers.from_diffusers(folder)
        (folder / part).write_bytes(kept)
    assert importers.from_diffusers(folder).shape == (4, 4, 1)


@pytest.mark.parametrize("index", [{}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}])
def test_an_index_without_files_is_named(tmp_path, index):
    name = "diffusion_pytorch_model.safetensors.index.json"
    (tmp_path / name).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"{name} has no weight_map from tensors to files"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["fp16.safetensors", "non_ema-00001-of-00002.safetensors"])
def test_a_variant_of_the_weights_is_named_with_how_to_load_it(pipeline, name):
    folder = pipeline()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name(f"diffusion_pytorch_model.{name}"))
    variant = name.split(".")[0].split("-")[0]
    message = rf'only diffusion_pytorch_model\.{name}: .*from_pretrained\(.*variant="{variant}"\)'
    with pytest.raises(FileNotFoundError, match=message):
        importers.from_diffusers(folder)


# ------------------------------------------------------------------ keys and values


@pytest.mark.parametrize(
    "change, says",
    [
        ({"_class_name": ["UNet2DModel"]}, r"holds a \['UNet2DModel'\], and known are UNet2DModel"),
        ({"_class_name": None}, "holds a None, and known are UNet2DModel"),
        ({"sample_size": "4"}, r"config\.json: sample_size is '4', not of type"),
        ({"sample_size": [4, "4"]}, r"sample_size must be one or two numbers, got \(4, '4'\)"),
        ({"sample_size": 0}, r"sample_size must be one or two numbers, got \(0, 0\)"),
        ({"in_channels": "1"}, r"config\.json: in_channels is '1', not of type int"),
        ({"in_channels": None}, r"config\.json: in_channels is None, not of type int"),
        ({"num_class_embeds": "10"}, r"config\.json: num_class_embeds is '10', not of type"),
        ({"attention_head_dim": [8, 8]}, r"json: attention_head_dim is \(8, 8\), not of type"),
        ({"layers_per_block": True}, r"config\.json: layers_per_block is True, not of type int"),
        ({"norm_eps": "1e-5"}, r"config\.json: norm_eps is '1e-5', not of type"),
        ({"block_out_channels": 4}, r"config\.json: block_out_channels is 4, not of type tuple"),
        ({"resnet_skip_time_act": True}, "resnet_skip_time_act is a key that is not known here"),
    ],
)
def test_keys_and_values_of_a_network_that_are_not_known_are_named(pipeline, change, says):
    with pytest.raises(ValueError, match=says):
        importers.from_diffusers(pipeline(change))


def test_keys_that_leave_the_function_as_it_is_are_known():
    more = {"dropout": 0.1, "num_train_timesteps": 1000, "_diffusers_version": "0.1", "_other": 1}
    assert malformed(UNET | more) is None and unsupported(UNET | more) is None


def test_every_key_of_a_network_of_diffusers_is_known(diffusers):
    theirs = diffusers.UNet2DModel(**{k: v for k, v in UNET.items() if k != "_class_name"})
    assert malformed(json.loads(theirs.to_json_string())) is None


# ------------------------------------------------------------------ conditioning


@pytest.mark.parametrize("label", [10, -1, 10**6])
def test_a_class_that_a_network_has_not_is_refused_at_once(pipeline, label):
    folder = pipeline(classes=10)
    with pytest.raises(ValueError, match=f"takes a label from 0 to 9, a whole number, got {label}"):
        importers.from_diffusers(folder, conditioning=[np.asarray(label)])
    foreign = importers.from_diffusers(folder, conditioning=[np.asarray(9)])
    with pytest.raises(ValueError, match=f"expected a class from 0 to 9, got {label}"):
        foreign.given(label)


def test_a_label_that_is_no_whole_number_is_refused(pipeline):
    with pytest.raises(ValueError, match=r"a whole number, got 2\.5"):
        importers.from_diffusers(pipeline(classes=10), conditioning=[np.asarray(2.5)])


def test_a_label_for_a_network_without_is_refused_in_words(pipeline):
    folder = pipeline()
    with pytest.raises(ValueError, match=r"unet takes no conditioning, got \[\[\]\]: it is a UNet"):
        importers.from_diffusers(folder, conditioning=[np.asarray(3)])
    with pytest.raises(ValueError, match="this network takes no label, got one") as refused:
        importers.from_diffusers(folder).given(3)
    assert "Tracer" not in str(refused.value)
