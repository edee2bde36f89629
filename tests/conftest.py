"""float64, eight virtual devices, quick compilation, checked annotations: set before scoresens is
first imported. With --as-people-run nothing of this: float32, one device, optimised, unchecked."""

import gc
import os

import chex
import jax
import jaxtyping
import pytest

# Compiling is most of the suite's time. Without optimizations, by the emitter that later versions
# no longer have, it takes half of what JAX's own setting to disable most optimizations takes.
OLD_EMITTER = (
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
)


def pytest_addoption(parser):
    parser.addoption("--only-torch", action="store_true", help="only tests that want PyTorch")
    parser.addoption("--fuzz", type=int, metavar="N", help="so many mutated files, other each time")
    parser.addoption(
        "--as-people-run",
        action="store_true",
        help="float32, optimised, annotations unchecked: the tests marked so",
    )


def pytest_configure(config):
    if config.getoption("--as-people-run"):
        return
    chex.set_n_cpu_devices(8)  # before JAX starts its first backend
    if jax.__version_info__ < (0, 11):
        os.environ["XLA_FLAGS"] += OLD_EMITTER
    else:
        jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_enable_x64", True)
    jaxtyping.install_import_hook("scoresens", "beartype.beartype")
    gc.set_threshold(50_000, 20, 20)  # JAX keeps a million objects; to look at all takes seconds


def pytest_collection_modifyitems(config, items):
    """With --only-torch, what runs without PyTorch as well is left out; with --as-people-run, what
    has bounds in float64 alone."""
    if config.getoption("--only-torch"):
        items[:] = [
            item
            for item in items
            if "torch" in getattr(item, "fixturenames", ()) or hasattr(item.module, "torch")
        ]
    if config.getoption("--as-people-run"):
        items[:] = [item for item in items if item.get_closest_marker("as_people_run")]


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_end_with_their_module():
    """Every compiled program holds some ten mappings of memory, and Linux gives a process 65,530:
    a worker that keeps the programs of the whole suite is killed when it compiles one too many."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def torch():
    """PyTorch, where it is installed; else the test is skipped."""
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def diffusers(torch):
    return pytest.importorskip("diffusers")


@pytest.fixture
def unchecked_annotations():
    """People run without beartype: the library's own checks must speak."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
