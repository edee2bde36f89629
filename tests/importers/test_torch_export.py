"""A torch module as a JAX function says what it says in torch."""

import json
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from random_networks import awakened  # noqa: E402
from torch_families import FAMILIES  # noqa: E402

import scoresens as ss  # noqa: E402
from scoresens import importers  # noqa: E402
from scoresens.importers import Program, Schedule, torch_export  # noqa: E402
from scoresens.models import ModelSettings, build  # noqa: E402

EACH = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def exported():
    """Every family's module, inputs and program by dtype, exported once."""
    kept = {}

    def get(family, dtype):
        if (family, dtype) not in kept:
            made = FAMILIES[family]
            module, inputs = made.make(dtype), made.inputs(dtype)
            kept[family, dtype] = module, inputs, torch_export(module, inputs)
        return kept[family, dtype]

    return get


def arrays(inputs):
    return [jnp.asarray(x.numpy()) for x in inputs]


def said(module, inputs):
    with torch.no_grad():
        return module(*inputs).numpy()


@jax.jit
def call(program, *inputs):
    return program(*inputs)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@EACH
def test_outputs_are_torch_s_in_float32(exported, family):
    module, inputs, program = exported(family, torch.float32)
    out = call(program, *arrays(inputs))
    assert out.dtype == jnp.float32
    assert relative(out, said(module, inputs)) <= 1e-5


@EACH
def test_outputs_are_torch_s_in_float64(exported, family):
    """Where a module computes in float32 inside, whatever its dtype, so does the program: the
    weights of EDM's attention, and the sines of the time in transformers."""
    module, inputs, program = exported(family, torch.float64)
    inside = FAMILIES[family].float32_inside or family in ("dit", "transformer")
    bound = 1e-6 if inside else 1e-10
    assert relative(call(program, *arrays(inputs)), said(module, inputs)) <= bound


@EACH
def test_directional_derivatives_are_difference_quotients(exported, family):
    """Of the program with nothing left in float32."""
    _, inputs, program = exported(family, torch.float64)
    x, *others = arrays(inputs)
    along = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))

    @jax.jit
    def both(program):
        def of(x):
            return program(x, *others)

        quotient = (of(x + 1e-5 * along) - of(x - 1e-5 * along)) / 2e-5
        return jax.jvp(of, (x,), (along,))[1], quotient

    found, quotient = both(Program(program.tensors, program.text.replace("float32", "float64")))
    assert relative(quotient, np.asarray(found)) <= 1e-6


@pytest.mark.parametrize(("family", "rounding"), [("small unet", 1e-12), ("transformer", 1e-8)])
def test_programs_transform(exported, family, rounding):
    """Batches are vmap, the reverse pass is the transpose of the forward one, and the gradient
    with respect to the parameters is torch's. The transformer has its time's frequencies in
    float32, which two programs may round apart, by 6e-8 of themselves."""
    module, inputs, program = exported(family, torch.float64)
    x, *others = arrays(inputs)
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.normal(size=(3, *x.shape)))
    together = jax.jit(jax.vmap(lambda x: program(x, *others)))(batch)
    for one, out in zip(batch, together, strict=True):
        assert relative(out, np.asarray(call(program, one, *others))) <= rounding
    out, pull = jax.vjp(lambda x: call(program, x, *others), x)
    along, back = jnp.asarray(rng.normal(size=x.shape)), jnp.asarray(rng.normal(size=out.shape))
    pushed = jax.jvp(lambda x: call(program, x, *others), (x,), (along,))[1]
    assert np.vdot(pushed, back) == pytest.approx(float(np.vdot(along, pull(back)[0])), rel=1e-10)

    def loss(program):
        return jnp.sum(call(program, x, *others) ** 2)

    (module(*inputs) ** 2).sum().backward()
    found = jax.grad(loss, allow_int=True)(program).tensors
    expected = dict(module.named_parameters())
    compared = [name for name in found if name in expected]
    assert len(compared) > 5
    for name in compared:
        their = turned(module, name, expected[name].grad.numpy())
        np.testing.assert_allclose(found[name], their, rtol=1e-6, atol=1e-6 * np.abs(their).max())


def turned(module, name, tensor):
    """A kernel of torch, `[out, in, *window]`, as a program holds it; others as they are."""
    convolves = type(module.get_submodule(name.rpartition(".")[0])).__name__.startswith("Conv")
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if convolves and tensor.ndim > 2 else tensor


def test_kernels_in_the_order_of_torch_are_read_too(exported):
    module, inputs, program = exported("small unet", torch.float32)
    theirs = {name: jnp.asarray(x.numpy()) for name, x in module.state_dict().items()}
    for name, leaf in program.tensors.items():
        np.testing.assert_array_equal(leaf, turned(module, name, np.asarray(theirs[name])))
    plain = Program(
        {name: theirs[name] for name in program.tensors},
        program.text.replace('"turned": true', '"turned": false'),
    )
    assert plain.text != program.text
    assert relative(call(plain, *arrays(inputs)), said(module, inputs)) <= 1e-5


def test_other_parameters_do_not_compile_again(exported):
    _, inputs, program = exported("small mlp", torch.float32)
    traces = []

    @jax.jit
    def traced(program, *inputs):
        traces.append(1)
        return program(*inputs)

    doubled = jax.tree.map(lambda leaf: 2 * leaf, program)
    first, second = (traced(p, *arrays(inputs)) for p in (program, doubled))
    assert len(traces) == 1
    assert not np.allclose(first, second)


def test_what_has_no_counterpart_is_named_with_its_place():
    class Random(torch.nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.noisy = Random()

        def forward(self, x):
            return self.noisy(x)

    with pytest.raises(ValueError, match=r"no counterpart here: randn_like.*noisy \(Random\)"):
        torch_export(Outer(), (torch.zeros(1, 2),))


def test_what_torch_cannot_follow_is_said():
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"torch\.export cannot follow Branching"):
        torch_export(Branching(), (torch.zeros(1, 2),))


def test_parameters_that_are_not_finite_are_refused():
    module = torch.nn.Linear(2, 2)
    module.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight has values that are not finite"):
        torch_export(module, (torch.zeros(1, 2),))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_parameters_without_a_counterpart_are_named_with_their_dtype(dtype):
    class Eight(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(2).to(dtype), requires_grad=False)

        def forward(self, x):
            return x * self.scale.float()

    with pytest.raises(ValueError, match=rf"tensor scale is of {dtype}, .* by module\.float\(\)"):
        torch_export(Eight(), (torch.zeros(1, 2),))


def test_the_module_is_left_as_it_was(exported):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).train()
    program = torch_export(module, (torch.ones(1, 2),))
    assert module.training
    out = call(program, jnp.ones((1, 2), jnp.float32))  # and nothing is dropped
    assert relative(out, said(module.eval(), (torch.ones(1, 2),))) <= 1e-6


def test_inputs_of_other_shapes_are_refused(exported):
    _, _, program = exported("small mlp", torch.float32)
    with pytest.raises(ValueError, match=r"the program takes .*\[1, 2\].*map over more with"):
        program(jnp.zeros((5, 2)), jnp.zeros(1))


@pytest.mark.parametrize(
    "spoilt, says",
    [
        ({"calls": []}, "lacks its output"),
        ({"output": "nowhere"}, "lacks its output nowhere"),
        ({"inputs": 3}, "no program"),
    ],
)
def test_a_text_that_is_no_program_is_refused(exported, spoilt, says):
    _, _, program = exported("small mlp", torch.float32)
    with pytest.raises(ValueError, match=says):
        Program(program.tensors, json.dumps(json.loads(program.text) | spoilt))


def test_tensors_that_lack_or_are_too_many_are_named(exported):
    _, _, program = exported("small mlp", torch.float32)
    name, *_ = program.tensors
    fewer = {k: v for k, v in program.tensors.items() if k != name}
    with pytest.raises(ValueError, match=f"the program lacks {name}, in "):
        Program(fewer, program.text)
    with pytest.raises(ValueError, match="no part of the program: spare"):
        Program(program.tensors | {"spare": jnp.zeros(1)}, program.text)


# ------------------------------------------------------------------ scores


def gaussian(std):
    """The module that denoises N(0, std^2) in the frame of EDM, with a spare parameter."""

    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.variance = torch.nn.Parameter(torch.tensor(std**2, dtype=torch.float64))

        def forward(self, x, sigma):
            share = self.variance / (self.variance + sigma**2)
            return share.reshape(-1, *[1] * (x.ndim - 1)) * x

    return Exact()


def test_a_module_s_score_is_that_of_its_law():
    law = ss.GaussianMixture(jnp.ones(1), jnp.zeros((1, 12)), jnp.full(1, 0.49))
    schedule = Schedule(ss.EDM(), "denoiser", "noise_level")
    foreign = importers.from_torch(gaussian(0.7), schedule, (2, 2, 3))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3)))
    exact = ss.exact_score(ss.EDM(), law)(1.3, x.reshape(-1))
    np.testing.assert_allclose(foreign.score(1.3, x).reshape(-1), exact, rtol=1e-12)


@pytest.mark.parametrize("kind, shape", [("unet", (4, 4, 2)), ("mlp", (2, 2, 1))])
def test_our_networks_come_back_from_torch(kind, shape):
    skeleton = jax.eval_shape(
        lambda: build(ModelSettings(kind, 4, 1), shape, 0.5, key=jax.random.key(0))
    )
    model, rng = awakened(skeleton, np.float64), np.random.default_rng(0)

    def call(module, x, tau):
        return module(tau, x.movedim(1, -1)).movedim(-1, 1)

    schedule = Schedule(ss.EDM(), "denoiser", "noise_level")
    foreign = importers.from_torch(importers.to_torch(model), schedule, shape, call=call)
    x = jnp.asarray(rng.normal(size=shape))
    expected = ss.from_denoiser(ss.EDM(), model)(0.6, x)
    assert relative(foreign.score(0.6, x), np.asarray(expected)) <= 1e-10


def test_images_are_channels_last_here():
    class First(torch.nn.Module):
        """Returns its first channel, row by row, in all channels."""

        def forward(self, x, sigma):
            return x[:, :1].expand(-1, 2, -1, -1).to(torch.float64)

    schedule = Schedule(ss.EDM(), "score", "noise_level")
    foreign = importers.from_torch(First(), schedule, (3, 4, 2))
    x = jnp.arange(24.0, dtype=jnp.float32).reshape(3, 4, 2)
    np.testing.assert_array_equal(foreign.score(1.0, x), jnp.repeat(x[..., :1], 2, -1))


def test_a_learned_variance_is_left_out_and_other_shapes_are_refused():
    class Wide(torch.nn.Module):
        def __init__(self, times):
            super().__init__()
            self.times = times

        def forward(self, x, sigma):
            return torch.cat([x, *[0 * x] * (self.times - 1)], 1)

    schedule = Schedule(ss.EDM(), "score", "noise_level")
    foreign = importers.from_torch(Wide(2), schedule, (2, 2, 3))
    np.testing.assert_array_equal(foreign.score(1.0, jnp.ones((2, 2, 3))), jnp.ones((2, 2, 3)))
    with pytest.raises(ValueError, match=r"returns 9 channels.*3"):
        importers.from_torch(Wide(3), schedule, (2, 2, 3))


class Table(torch.nn.Module):
    """Adds a row of a table of ten."""

    def __init__(self):
        super().__init__()
        self.rows = torch.nn.Embedding(10, 2)

    def forward(self, x, time, *label):
        return x + self.rows(*label or (time,))


STEPS = Schedule(ss.DiscreteVP(np.geomspace(0.01, 90.0, 10)), "score", "step")


def test_a_table_of_times_wants_whole_numbers():
    """What the error advises is what helps: step 6.3 has the row of step 6."""
    module = Table()
    with pytest.raises(
        ValueError, match=r"have the module look up t\.round\(\)\.long\(\), or give"
    ):
        importers.from_torch(module, STEPS, (2,))
    foreign = importers.from_torch(
        module, STEPS, (2,), call=lambda module, x, t: module(x, t.round().long())
    )
    found = foreign.score((6.3 + 1) / 10, jnp.zeros(2, jnp.float32))
    np.testing.assert_allclose(found, module.rows.weight[6].detach().numpy(), rtol=1e-6)


def test_a_label_beyond_a_table_is_refused_or_nan():
    module = Table().train()
    for label in (10, -1):
        with pytest.raises(ValueError, match=rf"Table does not know the conditioning \[{label}\]"):
            importers.from_torch(module, STEPS, (2,), conditioning=[np.asarray(label)])
    foreign = importers.from_torch(module, STEPS, (2,), conditioning=[np.asarray(9)])
    assert module.training
    last = module.rows.weight[9].detach().numpy()
    x = jnp.zeros(2, jnp.float32)
    np.testing.assert_allclose(foreign.score(0.5, x), last, rtol=1e-6)
    for label in (10, -1):  # known to nobody before it is looked up
        assert jnp.isnan(foreign.given(label).score(0.5, x)).all()


def test_conditioning_that_a_program_does_not_take_is_refused():
    foreign = importers.from_torch(Table(), STEPS, (2,), conditioning=[np.asarray(9)])
    for given, got in (((), r"\[\]"), ((1, 2), r"\[\[\], \[\]\]"), ((np.ones(3),), r"\[\[3\]\]")):
        with pytest.raises(ValueError, match=rf"conditioning of shapes \[\[\]\], got {got}: one"):
            foreign.given(*given)


# ------------------------------------------------------------------ files

WITHOUT_TORCH = """
import sys


class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers"):
            raise AssertionError(f"{name} is imported")


sys.meta_path.insert(0, Refused())
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from scoresens import importers
foreign, about = importers.load(sys.argv[1])
t, x = np.load(sys.argv[2]), np.load(sys.argv[3])
np.save(sys.argv[4], jax.jit(lambda f, t, x: f.score(t, x))(foreign, t, x))
"""


def test_a_saved_score_is_the_same_where_there_is_no_torch(exported, tmp_path):
    module, _, _ = exported("small unet", torch.float32)
    schedule = Schedule(ss.DiscreteVP(np.geomspace(0.01, 90.0, 40)), "noise", "step", scale=0.5)
    foreign = importers.from_torch(module, schedule, (8, 8, 3))
    importers.save(tmp_path / "m.safetensors", foreign, {"source": "a test"})
    x = np.random.default_rng(0).normal(size=foreign.shape).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "t.npy", np.float32(0.4))
    files = [tmp_path / name for name in ("m.safetensors", "t.npy", "x.npy", "out.npy")]
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, files)], check=False)
    assert ran.returncode == 0
    expected = np.asarray(jax.jit(lambda f, x: f.score(0.4, x))(foreign, jnp.asarray(x)))
    assert relative(np.load(files[-1]), expected) <= 1e-5
    loaded, about = importers.load(files[0])
    assert about == {"source": "a test"}
    chex.assert_trees_all_equal(loaded, foreign)
