"""The pickles of EDM (Karras et al. 2022), whose classes carry their own source code.

Their networks are pickled as calls of a function of EDM's repository,

    torch_utils.persistence._reconstruct_persistent_obj(meta)

where `meta["module_src"]` is the source of a whole Python module, `meta["class_name"]` a class
in it, and `meta["state"]` the object's attributes. Here are stand-ins for what such a source
imports of that repository, so that nobody needs it.

Reading a pickle runs what its author wrote. It is done here, for those who say that they trust the
author, and nowhere else in the package: nothing else ever unpickles.
"""

import hashlib
import importlib.util
import io
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

from scoresens.importers._torch import needed_torch

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]

LEVELS = ("sigma_min", "sigma_max", "sigma_data")


def read_pickle(path: str | Path, *, trust: bool) -> "torch.nn.Module":
    """The network of a pickle of EDM, averaged over the training.

    Args:
        path: a file that EDM wrote: a dict with the network at "ema", or the network alone.
        trust: whether to run the program that the file is.

    Returns:
        The module `(x [B, C, H, W], sigma [B], class_labels [B, label_dim] or None) -> denoised
            [B, C, H, W]`, in eval mode, in float32, on the CPU, without gradients.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if torch is not installed.
        ValueError: without trust, before the file is opened; if the file is damaged or no pickle,
            or holds no network.

    References:
        Karras, Aittala, Aila, Laine 2022, arXiv:2206.00364, and its code, github.com/NVlabs/edm.
    """
    if not trust:
        raise ValueError(
            f"{path} is not read: a pickle is a program, which runs with your rights when it is "
            "read and may do anything that you may. If you trust whoever wrote this file, convert "
            "it with --trust-pickle (trust=True); the result is a safetensors file, which holds "
            "numbers alone and needs no trust"
        )
    torch, path = needed_torch("reading a pickle of EDM"), Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no pickle at {path}: correct the path")
    module = _network(torch, path, _unpickled(torch, path))
    return module.to("cpu", torch.float32).eval().requires_grad_(False)


def about_edm(module: "torch.nn.Module") -> dict[str, Any]:
    """What a module of `read_pickle` says about itself: the `shape` of an image, channels
    first, `label_dim`, 0 if it has no classes, and `sigma_min`, `sigma_max` and `sigma_data` as far
    as it has them. Raises a ValueError if it does not tell its images' shape."""
    try:
        channels, side = int(module.img_channels), int(module.img_resolution)
    except AttributeError as error:
        raise ValueError(
            f"{type(module).__name__} is no preconditioned network of EDM, such as EDMPrecond: "
            f"{error}"
        ) from error
    levels = {name: float(getattr(module, name)) for name in LEVELS if hasattr(module, name)}
    return {
        "shape": (channels, side, side),
        "label_dim": int(getattr(module, "label_dim", 0)),
        **levels,
    }


def _network(torch: Any, path: Path, whole: Any) -> Any:
    """What is the network in that which the file holds."""
    if isinstance(whole, dict) and "ema" not in whole:
        raise ValueError(f'{path} has no network: expected one at "ema", got {list(whole)}')
    found = whole["ema"] if isinstance(whole, dict) else whole
    if not isinstance(found, torch.nn.Module):
        place = 'its "ema"' if isinstance(whole, dict) else "it"
        raise ValueError(f"{path} has no network: {place} is a {type(found).__name__}")
    return found


def _unpickled(torch: Any, path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(9)
        if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            raise ValueError(f"{path} is a safetensors file, no pickle: it needs no trust")
        file.seek(0)
        try:
            with _present(_stand_ins(torch)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the source, and of torch about old tensors
                return _unpickler(torch, file).load()
        except Exception as error:  # a program may fail in any way
            raise ValueError(
                f"{path} is damaged, no pickle, or needs what is not here: "
                f"{type(error).__name__}: {error}"
            ) from error


def _unpickler(torch: Any, file: BinaryIO) -> pickle.Unpickler:
    """An unpickler that puts tensors on the CPU, wherever they were."""

    def on_cpu(stored: bytes) -> Any:
        return torch.load(io.BytesIO(stored), map_location="cpu", weights_only=False)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str, /) -> Any:
            if (module_name, global_name) == ("torch.storage", "_load_from_bytes"):
                return on_cpu
            return super().find_class(module_name, global_name)

    return Unpickler(file)


# ------------------------------------------------------------------ what sources import of EDM


class _EasyDict(dict):
    """A dict whose items are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def _stand_ins(torch: Any) -> dict[str, ModuleType]:
    """Modules by name, of those packages that cannot be imported."""
    modules = {}
    if not _importable("torch_utils.persistence"):
        persistence = _module(
            "torch_utils.persistence",
            persistent_class=lambda cls: cls,
            _reconstruct_persistent_obj=_reconstruction(),
        )
        misc = _module(
            "torch_utils.misc",
            const_like=lambda like, value: torch.as_tensor(value, dtype=like.dtype),  # of EDM2
        )
        modules["torch_utils"] = _module("torch_utils", persistence=persistence, misc=misc)
        modules |= {"torch_utils.persistence": persistence, "torch_utils.misc": misc}
    if not _importable("dnnlib"):
        util = _module("dnnlib.util", EasyDict=_EasyDict)
        modules |= {"dnnlib.util": util, "dnnlib": _module("dnnlib", util=util, EasyDict=_EasyDict)}
    return modules


def _reconstruction() -> Any:
    """A function of `meta` that returns the object. Objects of one source share its classes."""
    sources: dict[str, ModuleType] = {}

    def reconstructed(meta: Mapping[str, Any]) -> Any:
        source = meta["module_src"]
        if source not in sources:
            sources[source] = _executed(source)
        cls = getattr(sources[source], meta["class_name"])
        instance = cls.__new__(cls)
        if hasattr(instance, "__setstate__"):
            instance.__setstate__(meta["state"])
        else:
            instance.__dict__.update(meta["state"])
        return instance

    return reconstructed


def _executed(source: str) -> ModuleType:
    module = _module(f"pickled_{hashlib.sha256(source.encode()).hexdigest()[:16]}")
    with _present({module.__name__: module}):
        exec(compile(source, f"<{module.__name__}>", "exec"), module.__dict__)
    return module


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []  # it may have submodules
    module.__dict__.update(contents)
    return module


def _importable(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ImportError:  # of the package that it is in
        return False


@contextmanager
def _present(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Lets the modules be imported by name, and then puts `sys.modules` back as it was."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
