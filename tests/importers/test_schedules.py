"""Scheduler configurations as processes: against diffusers' own schedulers, and closed forms."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import scoresens as ss
from scoresens.importers import Foreign, Schedule, schedule
from scoresens.importers.schedules import DISCRETE, FLOWS, KARRAS
from scoresens.importers.schedules import EXPLODING as EXPLODED

DDPM = {"_class_name": "DDPMScheduler", "num_train_timesteps": 50}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
EXPLODING = {"_class_name": "ScoreSdeVeScheduler"}
EDM = {"_class_name": "EDMEulerScheduler"}
EULER = {"_class_name": "EulerDiscreteScheduler"}
UNIPC = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}
CONFIGS = {
    "linear": DDPM,
    "scaled linear": DDPM
    | {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.012},
    "cosine": DDPM | {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": DDPM | {"beta_schedule": "sigmoid"},
    "trained": DDPM | {"trained_betas": np.geomspace(1e-3, 0.2, 50).tolist()},
    "zero snr": DDPM | {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}
OF_DIFFUSERS = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's arrays
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
        (DDPM | {"prediction_type": "flow"}, "the prediction type 'flow' of DDPM.* is not known"),
        (DDPM | {"beta_schedule": "odd"}, "the beta schedule 'odd' is not known"),
        (DDPM | {"trained_betas": [0.1, 1.5]}, "betas must be .* between 0 and 1"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "'sample' of EDMEuler"),
        (DDPM | {"prediction_type": "flow_prediction"}, "use_flow_sigmas is not true"),
        (UNIPC | {"prediction_type": "v_prediction"}, "'v_prediction' of UniPC.* is not known"),
        (FLOW | {"prediction_type": "sample"}, "the prediction type 'sample' of FlowMatch"),
        (EXPLODING | {"prediction_type": "v_prediction"}, "'v_prediction' of ScoreSdeVe"),
        (EULER | {"timestep_type": "odd"}, "the timestep type 'odd' of EulerDiscreteScheduler"),
        (DDPM | {"invert_sigmas": True}, "invert_sigmas is true, which is known of flows alone"),
        (EDM | {"use_flow_sigmas": True}, "use_flow_sigmas is true, .* flows alone, not of EDM"),
        (
            UNIPC | {"invert_sigmas": True, "prediction_type": "epsilon"},
            "invert_sigmas is known of velocities alone, not of 'epsilon'",
        ),
    ],
)
def test_what_is_not_known_is_named(config, says):
    with pytest.raises(ValueError, match=says):
        schedule(config)


@pytest.mark.parametrize("config", [DDPM, FLOW, EXPLODING, EDM])
def test_a_key_that_is_not_known_is_named(config):
    with pytest.raises(ValueError, match="has keys that are not known here: snr_shift_scale, new"):
        schedule(config | {"snr_shift_scale": 3.0, "new": None, "steps_offset": 1})
    assert schedule(config | {"_diffusers_version": "9.9", "solver_order": 2}) == schedule(config)


def test_an_old_key_that_says_what_is_predicted_is_not_passed_over():
    assert schedule(DDPM | {"predict_epsilon": True}).prediction == "noise"
    with pytest.raises(ValueError, match=r'predict_epsilon is false.* "prediction_type": "sample"'):
        schedule(DDPM | {"predict_epsilon": False})


@pytest.mark.parametrize(
    "config, says",
    [
        (DDPM | {"_class_name": ["DDPMScheduler"]}, r"the scheduler \['DDPMScheduler'\] is not"),
        (DDPM | {"_class_name": None}, "the scheduler None is not known"),
        (DDPM | {"num_train_timesteps": "50"}, "num_train_timesteps is '50', not of type int"),
        (DDPM | {"num_train_timesteps": True}, "num_train_timesteps is True, not of type int"),
        (DDPM | {"num_train_timesteps": 10**12}, "num_train_timesteps must be from 2 to 1000000"),
        (DDPM | {"num_train_timesteps": 0}, "num_train_timesteps must be from 2 to 1000000, got 0"),
        (DDPM | {"beta_start": None}, "beta_start is None, not of type"),
        (DDPM | {"beta_end": "0.02"}, "DDPMScheduler: beta_end is '0.02', not of type"),
        (DDPM | {"beta_end": float("nan")}, "betas must be"),
        (DDPM | {"beta_schedule": ["linear"]}, r"beta_schedule is \['linear'\], not of type str"),
        (DDPM | {"beta_start": -1.0, "beta_schedule": "scaled_linear"}, "betas must be"),
        (DDPM | {"trained_betas": "0.1"}, "trained_betas is '0.1', not of type"),
        (DDPM | {"trained_betas": ["a", "b"]}, "trained_betas must be a row of numbers"),
        (DDPM | {"trained_betas": []}, r"betas must be a row .* got shape \(0,\)"),
        (DDPM | {"prediction_type": None}, "prediction_type is None, not of type str"),
        (DDPM | {"rescale_betas_zero_snr": "true"}, "rescale_betas_zero_snr is 'true', not of"),
        (EDM | {"sigma_data": "0.5"}, "sigma_data is '0.5', not of type"),
        (EDM | {"sigma_max": float("inf")}, "t_max must be a finite number"),
        (EDM | {"sigma_max": None}, "sigma_max must be a number, got None: leave it out"),
        (EXPLODING | {"sigma_min": "0.01"}, "sigma_min is '0.01', not of type"),
        (EXPLODING | {"sigma_min": None}, "sigma_min must be a number, got None"),
        (DDPM | {"beta_end": 10**400}, "beta_end is above 9007199254740992, which no setting"),
        (FLOW | {"num_train_timesteps": 10**400}, "num_train_timesteps is above 9007199254740992"),
        (DDPM | {"trained_betas": [0.1, 10**400]}, "trained_betas must be a row of numbers"),
    ],
)
def test_values_of_other_types_are_named(config, says):
    with pytest.raises(ValueError, match=says):
        schedule(config)


def test_what_is_no_configuration_is_refused(unchecked_annotations):
    with pytest.raises(ValueError, match=r"content of a scheduler_config\.json, got list"):
        schedule([DDPM])  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------ defaults of each scheduler

DEFAULTS = {  # beta_start, beta_end, and 1 for linear, 2 for scaled_linear
    "DDIMScheduler": (1e-4, 0.02, 1), "LMSDiscreteScheduler": (1e-4, 0.02, 1),
    "EulerDiscreteScheduler": (1e-4, 0.02, 1), "HeunDiscreteScheduler": (0.00085, 0.012, 1),
    "KDPM2DiscreteScheduler": (0.00085, 0.012, 1), "DPMSolverSDEScheduler": (0.00085, 0.012, 1),
    "KDPM2AncestralDiscreteScheduler": (0.00085, 0.012, 1), "LCMScheduler": (0.00085, 0.012, 2),
    "TCDScheduler": (0.00085, 0.012, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_missing_keys_have_the_scheduler_s_own_defaults(name):
    low, high, power = DEFAULTS[name]
    roots = [low ** (1 / power) + k / 999 * (high ** (1 / power) - low ** (1 / power))
             for k in range(1000)]  # fmt: skip
    kept = math.exp(math.fsum(math.log1p(-(root**power)) for root in roots))
    levels = discrete({"_class_name": name}).noise_levels
    assert len(levels) == 1000
    assert 1 / (1 + levels[-1] ** 2) == pytest.approx(kept, rel=1e-9)


@OF_DIFFUSERS
def test_every_key_and_default_of_every_scheduler_of_diffusers(diffusers):
    """Of a file that says all, and of one that says nothing but the scheduler's name."""
    compared = 0
    for name in sorted(DISCRETE | FLOWS | KARRAS | EXPLODED):
        try:
            theirs = getattr(diffusers, name)()
        except ImportError:  # what some want is not installed
            continue
        bare, whole = schedule({"_class_name": name}), schedule(written(theirs))
        assert bare == whole, name
        compared += 1
        if name in DISCRETE:
            kept = 1 / (1 + np.square(discrete(written(theirs)).noise_levels))
            np.testing.assert_allclose(kept, theirs.alphas_cumprod, rtol=2e-5, err_msg=name)
        elif name in KARRAS | EXPLODED:
            highest = bare.process.noise_level(bare.process.t_max)
            assert highest == pytest.approx(theirs.config.sigma_max, rel=1e-6), name
    assert compared >= 24


# ------------------------------------------------------------------ against diffusers' own steps


def network(time, x):
    """Any network: numbers of torch or of JAX."""
    return 0.3 * x + 0.002 * time + 0.1


def written(scheduler):
    """What a scheduler of diffusers writes to its scheduler_config.json."""
    return json.loads(scheduler.to_json_string())


def denoised(config, t, x):
    """What this network's denoiser is here, at a time of the process."""
    foreign = Foreign(schedule(config), network, x.shape)
    return ss.to_denoiser(foreign.process, foreign.score)(t, jnp.asarray(x, float))


SVD = {
    "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear",
    "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": False,
    "sigma_max": 700.0, "sigma_min": 0.002, "skip_prk_steps": True, "steps_offset": 1,
    "timestep_spacing": "leading", "timestep_type": "continuous", "trained_betas": None,
    "use_karras_sigmas": True,
}  # fmt: skip
STEPPED = {
    "continuous v": SVD,
    "v of EDM": {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction",
                 "sigma_data": 0.7},
    "EDM": {"_class_name": "EDMEulerScheduler", "sigma_data": 0.7},
    "continuous noise": SVD | {"prediction_type": "epsilon", "sigma_max": None},
}  # fmt: skip


@OF_DIFFUSERS
@pytest.mark.parametrize("name", STEPPED)
def test_a_step_of_diffusers_denoises_the_same(torch, diffusers, name):
    config = STEPPED[name]
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    theirs.set_timesteps(6)
    process = schedule(config).process
    for time, sigma in zip(theirs.timesteps, theirs.sigmas, strict=False):
        x = torch.linspace(-1, 2, 5)[None] * (1 + sigma)
        out = network(time, theirs.scale_model_input(x, time))
        expected = theirs.step(out, time, x).pred_original_sample[0].numpy()
        t = process.time(float(sigma))
        found = denoised(config, t, process.alpha(t) * x[0].numpy())
        np.testing.assert_allclose(found, expected, atol=3e-5 * np.abs(expected).max())


@OF_DIFFUSERS
@pytest.mark.parametrize("inverted", [False, True])
def test_a_step_of_a_flow_of_diffusers_is_along_the_same_velocity(torch, diffusers, inverted):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0, invert_sigmas=inverted)
    theirs.set_timesteps(4)
    foreign = Foreign(schedule(written(theirs)), network, (5,))
    velocity = ss.to_velocity(foreign.process, foreign.score)
    shares = 1 - theirs.sigmas if inverted else theirs.sigmas  # of noise
    for i in range(1, 4):  # the first is at 1, where there is no signal
        x = torch.linspace(-1, 2, 5)[None]
        theirs._step_index = i
        time = theirs.timesteps[i]
        moved = theirs.step(network(time, x), time, x).prev_sample
        expected = (moved - x)[0] / (shares[i + 1] - shares[i])
        found = velocity(float(shares[i]), jnp.asarray(x[0].numpy(), float))
        np.testing.assert_allclose(found, expected, atol=1e-4)


@OF_DIFFUSERS
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "flow_prediction"])
def test_flows_of_other_predictions_denoise_as_diffusers_does(torch, diffusers, predicts):
    theirs = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type=predicts, flow_shift=3.0
    )
    theirs.set_timesteps(5)
    for i in (1, 3):
        theirs._step_index, x = i, torch.linspace(-1, 2, 5)[None]
        out = network(theirs.sigmas[i] * 1000, x)
        expected = theirs.convert_model_output(out, sample=x)[0]
        found = denoised(written(theirs), float(theirs.sigmas[i]), x[0].numpy())
        np.testing.assert_allclose(found, expected, atol=1e-4)


# ------------------------------------------------------------------ exact networks

LAW = ss.GaussianMixture(jnp.ones(1), jnp.array([[3.0, -1.0]]), jnp.array([0.25]))


def said_by(config, network, t, x):
    foreign = Foreign(schedule(config), network, (2,))
    return foreign.score(t, x), ss.exact_score(foreign.process, LAW)(t, x)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_inverted_sigmas_are_the_flow_from_noise_to_data(t):
    """The straight path's velocity is the mean of data minus noise, and the clock what is data."""

    def exact(time, x):
        kept = time / 1000
        spread = kept**2 * 0.25 + (1 - kept) ** 2
        data = LAW.means[0] + kept * 0.25 * (x - kept * LAW.means[0]) / spread
        return data - (x - kept * data) / (1 - kept)

    found, expected = said_by(FLOW | {"invert_sigmas": True}, exact, t, jnp.array([0.4, 0.2]))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 300.0])
def test_continuous_steps_of_v_are_edm(sigma):
    """v = n / sqrt(1 + sigma^2) - x_0 sigma / sqrt(1 + sigma^2), at log(sigma) / 4."""

    def exact(time, x):
        sigma = jnp.exp(4 * time)
        place = x * jnp.sqrt(1 + sigma**2)
        data = LAW.means[0] + 0.25 * (place - LAW.means[0]) / (0.25 + sigma**2)
        return ((place - data) / sigma - sigma * data) / jnp.sqrt(1 + sigma**2)

    found, expected = said_by(SVD, exact, sigma, jnp.array([0.4, 0.2]) * (1 + sigma))
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    assert schedule(SVD).process == ss.EDM(700.0)


def test_without_their_end_continuous_steps_end_at_the_last_beta():
    process = schedule(SVD | {"sigma_max": None}).process
    last = discrete(SVD | {"timestep_type": "discrete"}).noise_levels[-1]
    assert process.t_max == pytest.approx(float(last))


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
