"""Scheduler configurations as processes: against diffusers' own schedulers, and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

import scoresens as ss
from scoresens.importers import Schedule, schedule

DDPM = {"_class_name": "DDPMScheduler", "num_train_timesteps": 50}
CONFIGS = {
    "linear": DDPM,
    "scaled linear": DDPM
    | {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.012},
    "cosine": DDPM | {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": DDPM | {"beta_schedule": "sigmoid"},
    "trained": DDPM | {"trained_betas": np.geomspace(1e-3, 0.2, 50).tolist()},
    "zero snr": DDPM | {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}
PREDICTED = {"epsilon": "noise", "sample": "denoiser", "v_prediction": "v"}


def discrete(config) -> ss.DiscreteVP:
    process = schedule(config).process
    assert isinstance(process, ss.DiscreteVP)
    return process


@pytest.mark.parametrize("name", CONFIGS)
def test_noised_data_are_the_scheduler_s(torch, diffusers, name):
    theirs = diffusers.DDPMScheduler.from_config(CONFIGS[name])
    process = discrete(CONFIGS[name])
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for step in (0, 7, 48):
        expected = theirs.add_noise(x, noise, torch.tensor([step]))
        t = (step + 1) / len(process.noise_levels)
        found = process.alpha(t) * x.numpy() + process.sigma(t) * noise.numpy()
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)  # theirs are float32
        assert process.step(t) == pytest.approx(step, abs=1e-9)


def test_without_signal_at_the_end_the_last_step_is_left_out():
    process = discrete(CONFIGS["zero snr"])
    assert len(process.noise_levels) == 49
    assert np.isfinite(process.noise_levels).all()


@pytest.mark.parametrize("kind", PREDICTED)
def test_predictions(kind):
    assert schedule(DDPM | {"prediction_type": kind}).prediction == PREDICTED[kind]


def test_paths_start_at_the_last_step_or_at_eighty():
    short = schedule(CONFIGS["linear"]).process  # 50 steps add little noise
    assert short.t_max == 1
    long = schedule({"_class_name": "PNDMScheduler", "beta_schedule": "squaredcos_cap_v2"}).process
    assert long.noise_level(long.t_max) == pytest.approx(80, rel=1e-6)


def test_a_flow_is_the_straight_path_seen_in_thousandths():
    found = schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert isinstance(found.process, ss.FlowMatching)
    assert (found.prediction, found.clock, found.scale) == ("velocity", "time", 1000.0)


def test_edm_is_preconditioned():
    found = schedule({"_class_name": "EDMEulerScheduler", "sigma_data": 0.6, "sigma_max": 70.0})
    assert (found.prediction, found.clock, found.sigma_data) == ("preconditioned", "log_level", 0.6)
    assert found.process.t_max == 70.0


def test_song_s_scheduler_is_variance_exploding():
    found = schedule({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 90.0})
    assert isinstance(found.process, ss.VE)
    assert (found.process.sigma_max, found.prediction, found.clock) == (90.0, "score", "sigma")


@pytest.mark.parametrize(
    "config, says",
    [
        (
            {"_class_name": "VQDiffusionScheduler"},
            "the scheduler 'VQDiffusionScheduler' is not known",
        ),
        ({}, "the scheduler None is not known"),
        (DDPM | {"prediction_type": "flow"}, "the prediction type 'flow' is not known"),
        (DDPM | {"beta_schedule": "odd"}, "the beta schedule 'odd' is not known"),
        (DDPM | {"trained_betas": [0.1, 1.5]}, "betas must be .* between 0 and 1"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "'sample' of EDMEuler"),
    ],
)
def test_what_is_not_known_is_named(config, says):
    with pytest.raises(ValueError, match=says):
        schedule(config)


@pytest.mark.parametrize(
    "given, says",
    [
        ({"prediction": "eps"}, "Schedule.prediction must be one of noise, denoiser"),
        ({"clock": "index"}, "Schedule.clock must be one of step, time"),
        ({"clock": "step"}, "the clock 'step' is of a DiscreteVP, got a EDM"),
        ({"scale": 0.0}, "Schedule.scale must be a finite number greater than 0"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Schedule(**{"process": ss.EDM(), "prediction": "noise", "clock": "time"} | given)


def test_discrete_levels_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match="must be one rising row"):
        ss.DiscreteVP(jnp.array([0.1, 0.1, 3.0]))


def test_below_the_first_step_the_network_sees_it():
    process = discrete(DDPM)
    assert process.step(0.001) == 0
    assert process.noise_level(0.01) == pytest.approx(float(process.noise_levels[0]) / 2)
