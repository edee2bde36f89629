"""The U-Net of diffusers, in JAX: the same function of the same tensors."""

import math
import re
import warnings
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_networks import awakened

from scoresens.importers.unet2d import UNet2D, checkpoint_of, unet2d, unsupported

PLAIN = {
    "in_channels": 2,
    "out_channels": 5,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "add_attention": False,
    "dropout": 0.1,  # which does nothing once trained
}
ATTENDING = PLAIN | {
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
    "add_attention": True,
}
RESAMPLING = PLAIN | {
    "down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"],
    "up_block_types": ["ResnetUpsampleBlock2D", "UpBlock2D"],
}
FOURIER = PLAIN | {"time_embedding_type": "fourier"}
DDPM = ATTENDING | {  # as that of Ho et al. for CIFAR-10
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
CASES = {
    "plain": PLAIN,
    "attending": ATTENDING,
    "ddpm": DDPM,
    "resampled by blocks": ATTENDING | {"downsample_type": "resnet", "upsample_type": "resnet"},
    "resampling blocks": RESAMPLING | {"act_fn": "gelu"},
    "scaled and shifted": ATTENDING | {"resnet_time_scale_shift": "scale_shift", "norm_eps": 0.1},
    "normed in the middle": PLAIN
    | {"resnet_time_scale_shift": "scale_shift", "add_attention": True, "attn_norm_num_groups": 2},
    "scaled in the middle": PLAIN | {"add_attention": True, "mid_block_scale_factor": 2**0.5},
    "no middle": PLAIN | {"mid_block_type": None, "center_input_sample": True},
    "odd widths": ATTENDING
    | {"block_out_channels": [9, 12], "norm_num_groups": 3, "attention_head_dim": 5},
    "fourier": FOURIER | {"class_embed_type": "timestep", "time_embedding_dim": 12},
    "classes": PLAIN | {"num_class_embeds": 4, "act_fn": "mish"},
    "numbers for labels": PLAIN | {"class_embed_type": "timestep", "act_fn": "relu"},
    "vectors for labels": PLAIN | {"class_embed_type": "identity"},
}
EACH = pytest.mark.parametrize("case", CASES)
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])


@pytest.fixture(scope="module")
def model_class(torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers imports what others deprecate
        return pytest.importorskip("diffusers").UNet2DModel


@pytest.fixture
def theirs(torch, model_class):
    """Makes diffusers' model of a configuration, every parameter random."""

    def made(config, dtype):
        model = model_class(**config).to(torch.float64).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                scale = 0.3 if parameter.ndim == 1 else math.prod(parameter.shape[1:]) ** -0.5
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(scale * drawn)
        return model.to(getattr(torch, np.dtype(dtype).name))

    return made


def ours_of(model):
    """Our network, from a configuration and tensors such as files hold."""
    return unet2d(dict(model.config), {name: x.numpy() for name, x in model.state_dict().items()})


def ours(config, dtype: Any = np.float64):
    """Our network, every parameter random; it needs no torch."""
    skeleton = jax.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
    return awakened(skeleton, dtype)


def asked(config, dtype: Any = np.float64) -> tuple[Any, ...]:
    """Steps `[3]`, samples `[3, H, W, C]` and labels, if any, `[3, ...]`."""
    fourier, rng = config.get("time_embedding_type") == "fourier", np.random.default_rng(1)
    steps = np.array([0.02, 1.3, 40.0] if fourier else [0.0, 17.0, 999.0], dtype)
    x = rng.normal(size=(3, 4, 8, config["in_channels"])).astype(dtype)
    if "num_class_embeds" in config:
        return steps, x, np.array([3, 0, 1])
    if config.get("class_embed_type") == "timestep":
        return steps, x, np.array([5.0, 2.0, 300.0], dtype)
    if config.get("class_embed_type") == "identity":
        return steps, x, rng.normal(size=(3, 4 * config["block_out_channels"][0])).astype(dtype)
    return steps, x


@jax.jit
def call(network, *given):
    return jax.vmap(network)(*given)


def called(torch, model, steps, x, *labels):
    """What diffusers says, channels last."""
    with torch.no_grad():
        out = model(
            torch.from_numpy(x.transpose(0, 3, 1, 2)),
            torch.from_numpy(steps),
            *map(torch.from_numpy, labels),
        )
    return out.sample.numpy().transpose(0, 2, 3, 1)


def unrounded(torch, model):
    """diffusers computes the features of a step in float32, also in a model of float64. Ours have
    its frequencies, but float64's angles and sines: so has the model after this."""

    class Features(torch.nn.Module):
        def forward(self, steps):
            half = model.config.block_out_channels[0] // 2
            powers = -math.log(10000) * torch.arange(half, dtype=torch.float32)
            w = torch.exp(powers / (half - model.config.freq_shift)).double()
            angles = steps.double()[:, None] * w
            waves = [angles.sin(), angles.cos()]
            if model.config.flip_sin_to_cos:
                waves.reverse()
            odd = torch.zeros(len(steps), model.config.block_out_channels[0] % 2)
            return torch.cat([*waves, odd.double()], dim=1)

    if model.config.time_embedding_type == "positional":
        model.time_proj = Features()
    return model


def error(found, expected):
    """The largest error, relative to the largest entry of each sample."""
    scale = np.abs(expected).max((1, 2, 3))
    return float((np.abs(np.asarray(found) - expected).max((1, 2, 3)) / scale).max())


@EACH
@DTYPES
def test_outputs_are_those_of_diffusers(torch, theirs, case, dtype, tolerance):
    model, given = theirs(CASES[case], dtype), asked(CASES[case], dtype)
    found = call(ours_of(model), *given)
    assert found.dtype == dtype and found.shape == (3, 4, 8, 5)
    model = unrounded(torch, model) if dtype == np.float64 else model
    assert error(found, called(torch, model, *given)) <= tolerance


def test_in_float64_only_the_rounding_of_a_steps_features_differs(torch, theirs):
    """At step 999 angles rounded to float32 are wrong by up to 3e-5."""
    model, given = theirs(DDPM, np.float64), asked(DDPM)
    differs = error(call(ours_of(model), *given), called(torch, model, *given))
    assert 1e-10 < differs <= 1e-6


def test_our_tensors_are_those_of_diffusers(torch, theirs):
    """Both ways: each of ours takes its place there, and the outputs are equal."""
    network, given = ours(DDPM, np.float32), asked(DDPM, np.float32)
    model = theirs(DDPM, np.float32)
    model.load_state_dict(
        {n: torch.tensor(x) for n, x in checkpoint_of(network).items()}, strict=True
    )
    assert error(call(network, *given), called(torch, model, *given)) <= 1e-5


def test_a_step_may_be_a_whole_number(torch, theirs):
    model, (steps, x) = theirs(PLAIN, np.float32), asked(PLAIN, np.float32)
    expected = called(torch, model, steps.astype(np.int64), x)
    assert error(call(ours_of(model), steps.astype(np.int32), x), expected) <= 1e-5
    one = jax.jit(ours_of(model), static_argnums=0)(17, x[1])
    assert error(one[None], expected[1:2]) <= 1e-5


# ------------------------------------------------------------------ without torch


@pytest.mark.slow
@pytest.mark.parametrize("case", ["attending", "classes"])
def test_a_batch_is_its_samples(case):
    network, given = ours(CASES[case]), asked(CASES[case])
    single = jax.jit(network)
    each = [single(*map(jnp.asarray, one)) for one in zip(*given, strict=True)]
    assert error(call(network, *given), np.stack(each)) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("config", [ATTENDING, FOURIER], ids=["positional", "fourier"])
def test_derivatives_are_those_of_finite_differences(config):
    network, (steps, x) = ours(config), asked(config)
    rng, h = np.random.default_rng(2), 1e-5
    along = h * rng.normal(size=steps.shape) * np.minimum(steps, 1), h * rng.normal(size=x.shape)

    @jax.jit
    def both(steps, x, v, w):
        def f(steps, x):
            return jax.vmap(network)(steps, x)

        tangent = jax.jvp(f, (steps, x), (v, w))[1]
        return tangent, jax.vjp(f, steps, x)[1](tangent)

    tangent, back = both(steps, x, *along)
    ahead, behind = (call(network, steps + s * along[0], x + s * along[1]) for s in (1, -1))
    assert error((ahead - behind) / 2, np.asarray(tangent)) <= 1e-6
    adjoint = sum(jnp.vdot(b, a) for b, a in zip(back, along, strict=True))
    assert float(adjoint) == pytest.approx(float(jnp.sum(tangent**2)), rel=1e-10)


@pytest.mark.slow
def test_parameters_have_gradients():
    """Every one of them, so that none is left out of the function."""
    network, given = ours(CASES["no middle"]), asked(PLAIN)
    slopes = jax.jit(jax.grad(lambda network: jnp.sum(jax.vmap(network)(*given) ** 2)))(network)
    blind = [name for name, slope in checkpoint_of(slopes).items() if not np.abs(slope).max() > 0]
    assert not blind


def test_old_names_are_new_names():
    network = ours(DDPM)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = checkpoint_of(network)
    for new, name in old.items():
        tensors = {k.replace(f".{new}.", f".{name}."): x for k, x in tensors.items()}
    assert not tensors.keys() >= checkpoint_of(network).keys()
    again = unet2d(DDPM, tensors)
    chex.assert_trees_all_equal(again, network)


def test_a_network_is_its_configuration_and_tensors():
    network = ours(DDPM, np.float16)
    again = unet2d(DDPM, checkpoint_of(network))
    chex.assert_trees_all_equal(again, network)
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {np.dtype(np.float16)}


@pytest.mark.slow
def test_half_precision_is_computed_in_the_samples():
    halves, given = ours(ATTENDING, np.float16), asked(ATTENDING, np.float32)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves)
    found, expected = call(halves, *given), call(wide, *given)
    assert found.dtype == np.float32
    assert error(found, np.asarray(expected)) <= 1e-6


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "down_block_types.*'SkipDown"),
        ({"up_block_types": ["UpBlock2D", "SkipUpBlock2D"]}, "up_block_types has 'SkipUpBlock2D'"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types has 1 entries"),
        ({"_class_name": "UNet1DModel"}, "_class_name is 'UNet1DModel'"),
        ({"time_embedding_type": "learned"}, "time_embedding_type is 'learned'"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type is 'UNetMidBlock2DCross"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'"),
        ({"downsample_type": "fir"}, "downsample_type is 'fir'"),
        ({"downsample_padding": 2}, "downsample_padding is 2"),
        ({"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
        ({"act_fn": "elu"}, "act_fn is 'elu'"),
        ({"norm_num_groups": None}, "norm_num_groups is None"),
        ({"norm_num_groups": 5}, "block_out_channels has 8"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"norm_eps": "1e-5"}, "norm_eps is '1e-5'"),
        ({"freq_shift": 4}, "freq_shift is 4"),
        ({"add_attention": True, "attention_head_dim": 17}, "attention_head_dim is 17"),
        ({"add_attention": True, "attn_norm_num_groups": 3}, "attn_norm_num_groups is 3"),
    ],
)
def test_configurations_that_cannot_be_built_are_named(changed, told):
    reason = unsupported(PLAIN | changed)
    assert reason is not None and re.search(told, reason)
    with pytest.raises(ValueError, match=told):
        unet2d(PLAIN | changed, {})


@EACH
def test_configurations_that_can_be_built_are_not_refused(case):
    assert unsupported(CASES[case] | {"_class_name": "UNet2DModel", "sample_size": 32}) is None


def test_the_defaults_can_be_built():
    assert unsupported({}) is None


NAME = "mid_block.resnets.1.conv2.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop(NAME), f"lack {NAME}"),
        (lambda tensors: tensors.clear(), r"lack conv_in\.bias.* and \d+ more"),
        (lambda tensors: tensors.update(other=np.ones(1)), "have other"),
        (lambda tensors: tensors.update({NAME: np.ones((16, 16, 1, 3))}), r"3, 3\).*\(16, 16, 1"),
        (lambda tensors: tensors.update({NAME: tensors[NAME] * math.nan}), f"{NAME} has 2304"),
        (lambda tensors: tensors.update({NAME: tensors[NAME] * math.inf}), f"{NAME} has 2304"),
        (lambda tensors: tensors.update({NAME: tensors[NAME].astype(int)}), f"{NAME}.*int64"),
        (
            lambda tensors: tensors.update({"mid_block.attentions.0.query.bias": np.ones(16)}),
            r"have mid_block\.attentions\.0\.query\.bias",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, told):
    config = PLAIN | {"add_attention": True}
    tensors = checkpoint_of(ours(config))
    change(tensors)
    with pytest.raises(ValueError, match=told):
        unet2d(config, tensors)


@pytest.mark.parametrize("shape", [(2, 4, 8), (4, 7, 2), (5, 8, 2), (3, 4, 8, 2)])
def test_samples_that_do_not_fit_are_refused(unchecked_annotations, shape):
    with pytest.raises(ValueError, match="multiples of 2, got"):
        ours(PLAIN)(1.0, jnp.ones(shape))


def test_labels_that_do_not_fit_are_refused():
    x = jnp.ones((4, 8, 2))
    with pytest.raises(ValueError, match="this network takes no label, got one"):
        jax.jit(ours(PLAIN))(1.0, x, 1)
    with pytest.raises(ValueError, match=r"takes a label \(index\), got none"):
        ours(CASES["classes"])(1.0, x)
    with pytest.raises(ValueError, match="from 0 to 3, got 4"):
        ours(CASES["classes"])(1.0, x, 4)
    assert jnp.isnan(jax.jit(ours(CASES["classes"]))(1.0, x, 4)).all()
