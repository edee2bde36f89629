"""PyTorch modules as scores: any module, and the networks of EDM's pickles."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from scoresens.importers._pickles import about_edm, read_pickle
from scoresens.importers._torch import calling, needed_torch
from scoresens.importers.foreign import Exported, Foreign
from scoresens.importers.schedules import Schedule
from scoresens.importers.torch_export import torch_export
from scoresens.laws.noises import noise_of
from scoresens.laws.processes import EDM

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]


def from_torch(
    module: "torch.nn.Module",
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    conditioning: Sequence[ArrayLike] = (),
    call: Callable[..., Any] | None = None,
) -> Foreign:
    """The score of a PyTorch module.

    Args:
        module: called as `module(x [1, C, H, W], time [1], *conditioning) -> [1, C, H, W]`, or
            as `call` has it.
        schedule: the process that it was trained on, what it predicts, and what it sees for time.
        shape: of one sample, as it is to be here: `(H, W, C)` for images, `(d,)` for vectors.
        conditioning: what else it sees, an array each without batch axis. `Foreign.given` changes
            it later.
        call: `call(module, x, time, *conditioning)`, for modules that want it otherwise.

    Returns:
        A score of samples of `shape`, channels last, in the dtype of the module's parameters.

    Raises:
        ImportError: if torch is not installed.
        ValueError: as `torch_export`; and if the module returns another shape, or a label is beyond
            its table. Of twice the channels, those of a learned variance, the second half is left
            out.
    """
    torch = needed_torch("from_torch")
    parameter = next(module.parameters(), torch.zeros(()))
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    last = len(shape) > 1
    x = torch.zeros(1, *((shape[-1], *shape[:-1]) if last else shape), dtype=dtype)
    time, given = torch.full((1,), 0.5, dtype=dtype), [np.asarray(c) for c in conditioning]
    others = [_tensor(torch, c, dtype) for c in given]
    rule = call or (lambda module, *inputs: module(*inputs))
    if any(c.dtype.kind in "iu" for c in given):
        _try_labels(torch, module, rule, (x, time, *others))
    program = torch_export(calling(module, rule), (x, time, *others))
    network = Exported(program, channels_last=last, channels=shape[-1])
    return Foreign(schedule, network, tuple(shape), tuple(jnp.asarray(c) for c in given))


def _try_labels(torch: Any, module: Any, rule: Callable[..., Any], inputs: tuple) -> None:
    """Refuses whole numbers beyond a table of the module, which an export does not look at."""
    was_training = module.training
    try:
        with torch.no_grad():
            rule(module.eval(), *inputs)
    except IndexError as error:
        labels = [x.item() for x in inputs[2:] if x.numel() == 1]
        raise ValueError(
            f"{type(module).__name__} does not know the conditioning {labels}: {error}; a class "
            "is from 0 to one less than their number"
        ) from error
    except Exception:  # torch_export says what
        return
    finally:
        module.train(was_training)


def _tensor(torch: Any, values: np.ndarray, dtype: Any) -> Any:
    tensor = torch.from_numpy(values[None].copy())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def from_edm(
    path: str | Path,
    *,
    trust: bool,
    label: int | None = None,
    degrees_of_freedom: float | None = None,
) -> Foreign:
    """The score of a network in one of EDM's pickles, or of PFGM++'s, whose classes are the
    same.

    Args:
        path: such as `edm-cifar10-32x32-cond-vp.pkl`.
        trust: whether the file's author is trusted: reading a pickle runs what it says.
        label: a class, for a network of classes; left out, none. `Foreign.given` changes it later:
            a row of zeros with a one.
        degrees_of_freedom: D of PFGM++ (`--aug_dim` of its scripts), which its pickles do not say;
            left out, the noise is Gaussian.

    Returns:
        A score of the process `EDM()`, of Student-t noise for PFGM++, and of images `[H, W, C]` in
        [-1, 1].

    Raises:
        ImportError: if torch is not installed.
        ValueError: if the file is not trusted, is damaged, or holds no such network; as
            `from_torch`.

    References:
        Karras et al. 2022, arXiv 2206.00364; Xu et al. 2023, arXiv 2302.04265.
    """
    noise = noise_of(degrees_of_freedom)
    module = read_pickle(path, trust=trust)
    about = about_edm(module)
    (channels, *sides), classes = about["shape"], about.get("label_dim") or 0
    if label is not None and not 0 <= label < classes:
        raise ValueError(f"label must be one of the {classes} classes of {path}, got {label}")
    given = np.zeros(classes, np.float32)
    if label is not None:
        given[label] = 1
    sees = Schedule(EDM(noise=noise), "denoiser", "noise_level")
    conditioning = (given,) if classes else ()
    return from_torch(module, sees, (*sides, channels), conditioning=conditioning)
