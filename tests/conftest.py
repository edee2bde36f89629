"""float64, eight virtual devices, quick compilation, checked annotations: set before scoresens is
first imported."""

import os

import jax
import jaxtyping
import pytest

devices = "--xla_force_host_platform_device_count=8"  # read when JAX starts its first backend
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the suite's time
jaxtyping.install_import_hook("scoresens", "beartype.beartype")


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


def pytest_addoption(parser):
    parser.addoption("--only-torch", action="store_true", help="only tests that want PyTorch")


def pytest_collection_modifyitems(config, items):
    """With --only-torch, what runs without PyTorch as well is left out."""
    if config.getoption("--only-torch"):
        items[:] = [
            item
            for item in items
            if "torch" in getattr(item, "fixturenames", ()) or hasattr(item.module, "torch")
        ]


@pytest.fixture
def unchecked_annotations():
    """People run without beartype: the library's own checks must speak."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
