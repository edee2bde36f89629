"""Pipelines of diffusers as scores: the same numbers, from every layout, and clear refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

import scoresens as ss  # noqa: E402
from scoresens import importers  # noqa: E402
from scoresens.importers.foreign import Exported, Native  # noqa: E402
from scoresens.sensitivity.functionals import squared_distance  # noqa: E402

WEIGHTS = "diffusion_pytorch_model.safetensors"
STEPS = 100


def randomised(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.05 if parameter.ndim > 1 else 0.5, 0.1)
    return module.eval()


def unet(**changes):
    usual = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8),
             "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "layers_per_block": 1,
             "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 4}  # fmt: skip
    return randomised(diffusers.UNet2DModel(**usual | changes))


def prompted():
    return randomised(
        diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 8), cross_attention_dim=6, layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4,
        )
    )  # fmt: skip


def transformer():
    return randomised(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8,
            num_layers=1, sample_size=8, patch_size=2, num_embeds_ada_norm=10,
        )
    )  # fmt: skip


def autoencoder():
    return randomised(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, in_channels=1,
            up_block_types=("UpDecoderBlock2D",) * 2, out_channels=1, norm_num_groups=4,
            latent_channels=2, sample_size=8, scaling_factor=0.4,
        )
    )  # fmt: skip


def pipeline(folder, network, *, flat=False, name="unet", **scheduler):
    """A folder as diffusers writes it."""
    part = folder if flat else folder / name
    network.save_pretrained(part)
    how = diffusers.DDPMScheduler(num_train_timesteps=STEPS, beta_end=0.2, **scheduler)
    how.save_pretrained(folder if flat else folder / "scheduler")
    return folder


def noise_of(foreign, step, x):
    """What the network is asked for, from its score: the noise in x at a step."""
    process, t = foreign.process, (step + 1) / STEPS
    return jax.jit(lambda f, t, x: ss.to_noise(process, f.score)(t, x))(foreign, t, x)


def said(network, x, step, **others):
    """What diffusers' own network says of one sample `[H, W, C]`."""
    with torch.no_grad():
        channels_first = torch.from_numpy(np.moveaxis(np.asarray(x), -1, 0)[None].copy())
        out = network(channels_first, timestep=torch.tensor([step]), **others).sample[0]
    return np.moveaxis(out.numpy(), 0, -1)


def close(found, expected, bound=1e-5):
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 1)), jnp.float32)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_an_unconditional_pipeline(tmp_path, x, native, flat):
    network = unet()
    foreign = importers.from_diffusers(pipeline(tmp_path, network, flat=flat), native=native)
    assert isinstance(foreign.network, Native if native else Exported)
    assert foreign.shape == (8, 8, 1)
    for step in (0, 60):
        close(noise_of(foreign, step, x), said(network, x, step))


def test_between_steps_the_network_is_asked_between_them(tmp_path, x):
    network = unet()
    foreign = importers.from_diffusers(pipeline(tmp_path, network))
    close(noise_of(foreign, 30.5, x), said(network, x, 30.5))


@pytest.mark.parametrize("kind, back", [("sample", ss.to_denoiser), ("v_prediction", ss.to_v)])
def test_other_predictions(tmp_path, x, kind, back):
    network = unet()
    foreign = importers.from_diffusers(pipeline(tmp_path, network, prediction_type=kind))
    t = 61 / STEPS
    close(back(foreign.process, foreign.score)(t, x), said(network, x, 60), 2e-5)


def test_a_network_that_is_not_built_here_goes_through_torch(tmp_path, x):
    network = unet(down_block_types=("DownBlock2D", "SkipDownBlock2D"))
    foreign = importers.from_diffusers(pipeline(tmp_path, network))
    assert isinstance(foreign.network, Exported)
    close(noise_of(foreign, 60, x), said(network, x, 60))


def test_text_embeddings_are_arguments(tmp_path):
    network = prompted()
    rng = np.random.default_rng(1)
    x, one, other = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, 8, 4), (5, 6), (5, 6))
    )
    foreign = importers.from_diffusers(pipeline(tmp_path, network), conditioning=[one])
    for given in (one, other):
        text = torch.from_numpy(np.array(given)[None])
        expected = said(network, x, 60, encoder_hidden_states=text)
        close(noise_of(foreign.given(given), 60, x), expected)


def test_a_transformer_of_classes_with_a_learned_variance(tmp_path):
    network = transformer()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8, 4)), jnp.float32)
    foreign = importers.from_diffusers(pipeline(tmp_path, network, name="transformer"))
    for label in (0, 7):
        expected = said(network, x, 60, class_labels=torch.tensor([label]))
        close(noise_of(foreign.given(label), 60, x), expected[..., :4])


def test_a_class_that_a_transformer_has_not_is_refused(tmp_path):
    """Of ten, the eleventh is 'no class'."""
    folder = pipeline(tmp_path, transformer(), name="transformer")
    with pytest.raises(ValueError, match="takes a label from 0 to 10, a whole number, got 11"):
        importers.from_diffusers(folder, conditioning=[np.asarray(11)])
    foreign = importers.from_diffusers(folder, conditioning=[np.asarray(10)])
    assert jnp.isfinite(foreign.score(0.5, jnp.ones((8, 8, 4), jnp.float32))).all()


def test_a_label_where_a_text_belongs_is_refused(tmp_path):
    folder = pipeline(tmp_path, prompted())
    with pytest.raises(ValueError, match=r"takes the embedding of a text \[tokens, width\], got"):
        importers.from_diffusers(folder, conditioning=[np.asarray(3)])


def test_a_variant_is_read_once_it_is_saved_as_the_error_advises(tmp_path, x):
    folder = pipeline(tmp_path, unet())
    diffusers.UNet2DModel.from_pretrained(folder / "unet").save_pretrained(
        folder / "unet", variant="fp16"
    )
    (folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r'from_pretrained\(\.\.\., variant="fp16"\)'):
        importers.from_diffusers(folder)
    loaded = diffusers.UNet2DModel.from_pretrained(folder / "unet", variant="fp16")
    loaded.save_pretrained(folder / "unet")
    close(noise_of(importers.from_diffusers(folder), 60, x), said(loaded, x, 60))


@pytest.mark.parametrize("native", [True, False])
def test_a_saved_pipeline_is_the_same(tmp_path, x, native):
    foreign = importers.from_diffusers(pipeline(tmp_path, unet()), native=native)
    importers.save(tmp_path / "m.safetensors", foreign, {})
    loaded, _ = importers.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(noise_of(loaded, 60, x), noise_of(foreign, 60, x))


def test_a_name_on_the_hub(tmp_path, x, monkeypatch):
    import huggingface_hub  # pyright: ignore[reportMissingImports]

    network, asked = unet(), []
    folder = pipeline(tmp_path, network)

    def fetched(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    close(noise_of(importers.from_diffusers("someone/model"), 60, x), said(network, x, 60))
    assert asked == [("someone/model", ["*.json", "*.safetensors"])]

    def offline(name, allow_patterns):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="no folder someone/model, and the hub gave none"):
        importers.from_diffusers("someone/model")


# ------------------------------------------------------------------ refusals


def with_tensors(folder, change):
    file = folder / "unet" / WEIGHTS
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    "change, says",
    [
        (lambda tensors: tensors.pop("conv_in.bias"), "conv_in.bias"),
        (lambda tensors: tensors.update(spare=torch.zeros(1)), "spare"),
        (lambda tensors: tensors.update({"conv_in.bias": torch.zeros(3)}), "conv_in.bias|mismatch"),
        (lambda tensors: tensors["conv_in.bias"].fill_(float("nan")), "conv_in.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, native, change, says):
    folder = pipeline(tmp_path, unet())
    with_tensors(folder, change)
    with pytest.raises(ValueError, match=says):
        importers.from_diffusers(folder, native=native)


def edited(folder, part, **changes):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    file = folder / part / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "part, changes, says",
    [
        ("scheduler", {"_class_name": "OddScheduler"}, "the scheduler 'OddScheduler' is not known"),
        (
            "scheduler",
            {"prediction_type": "odd"},
            "the prediction type 'odd' of DDPM.* is not known",
        ),
        ("unet", {"_class_name": "UNet3DModel"}, "holds a UNet3DModel, and known are UNet2DModel"),
        ("unet", {"out_channels": 3}, "takes 1 channels and returns 3"),
        ("unet", {"attention_head_dim": [8, 8]}, "attention_head_dim is .* not of type"),
        ("unet", {"norm_num_groups": 3}, "unet: .* must be divisible"),
        ("unet", {"sample_size": None}, "does not say how large its samples are: give size"),
    ],
)
def test_configurations_that_are_not_known_are_named(tmp_path, part, changes, says):
    folder = pipeline(tmp_path, unet())
    edited(folder, part, **changes)
    with pytest.raises(ValueError, match=says):
        importers.from_diffusers(folder)


def test_weights_in_a_pickle_are_not_read(tmp_path):
    folder = pipeline(tmp_path, unet())
    weights = folder / "unet" / WEIGHTS
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"only the pickle diffusion_pytorch_model\.bin"):
        importers.from_diffusers(folder)
    weights.with_suffix(".bin").rename(weights)
    with pytest.raises(ValueError, match="is a pickle, which runs its author's code"):
        importers.from_diffusers(folder)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no pipeline of diffusers: no unet"):
        importers.from_diffusers(tmp_path)
    folder = pipeline(tmp_path, unet())
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no scheduler_config\.json"):
        importers.from_diffusers(folder)


def test_a_key_that_diffusers_does_not_know_is_named(tmp_path):
    folder = pipeline(tmp_path, prompted())
    edited(folder, "unet", new_attention=True)
    with pytest.raises(ValueError, match=r"UNet2DConditionModel of diffusers .*: new_attention"):
        importers.from_diffusers(folder, conditioning=[np.zeros((5, 6), np.float32)])


# ------------------------------------------------------------------ latents


def test_the_scale_of_latents_is_diffusers_own_where_the_file_has_none(tmp_path):
    """Files from before diffusers 0.10 have none: 0.18215, that of Stable Diffusion."""
    autoencoder().save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in content.items() if k != "scaling_factor"}))
    assert importers.autoencoder_from_diffusers(tmp_path, size=8).scale == 0.18215
    file.write_text(json.dumps(content | {"latents_mean": [0.1, 0.2]}))
    with pytest.raises(ValueError, match="has latents_mean, a scale of each channel"):
        importers.autoencoder_from_diffusers(tmp_path, size=8)


def test_latents_and_the_attribution_of_decoded_images(tmp_path):
    """What a training image does to the decoded sample is the derivative of the decoded functional
    along the first-order change of the latent."""
    theirs = autoencoder()
    theirs.save_pretrained(tmp_path / "vae")
    pipeline(tmp_path, unet(sample_size=4, in_channels=2, out_channels=2))
    foreign = importers.from_diffusers(tmp_path)
    vae = importers.autoencoder_from_diffusers(tmp_path, size=8)

    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, size=(6, 8, 8, 1)), jnp.float32)
    latents = jax.jit(jax.vmap(vae.encode))(images)
    with torch.no_grad():
        first = torch.from_numpy(np.moveaxis(np.asarray(images), -1, 1).copy())
        expected = 0.4 * theirs.encode(first).latent_dist.mean
        back = theirs.decode(expected / 0.4).sample
    close(latents, np.moveaxis(expected.numpy(), 1, -1))
    close(jax.jit(jax.vmap(vae.decode))(latents), np.moveaxis(back.numpy(), 1, -1))

    data = ss.Points(latents, bandwidth=0.3)
    noise = foreign.process.sample_prior((1, 4, 4, 2), key=jax.random.key(0))
    question = importers.decoded(squared_distance(images[0]), vae)
    solve = ss.Solve(steps=8)
    who = ss.attribute(
        foreign.process, foreign.score, data, question, noise, base=data, solve=solve
    ).scores
    weights = jnp.full(6, 1 / 6).at[2].add(0.1) / 1.1
    moved = ss.sample_sensitivity(
        foreign.process, foreign.score, ss.reweight(data, weights), noise, base=data, solve=solve
    )
    change = jax.jvp(question, (moved.x[0],), (moved.tangent[0, 0],))[1]
    np.testing.assert_allclose(who[0] @ (weights - 1 / 6), change, rtol=1e-4)
