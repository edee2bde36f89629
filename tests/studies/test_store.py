"""The folder of a study: whose it is, what is kept, and what is found again."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scoresens.datasets.images import DataSettings
from scoresens.models import ModelSettings
from scoresens.studies.store import ARRAY, Store, arrays, of_study

NAMES = [f"t{number}" for number in range(4)]


def numbers(name):
    return np.full((1, 2), float(name[1]))


@pytest.fixture(params=["npz", "npy"])
def kept(request, tmp_path):
    """A store of either form, and what makes a result of it."""
    if request.param == "npy":
        return Store(tmp_path / "kept", ARRAY), numbers
    return Store(tmp_path / "kept", arrays("x")), lambda name: {"x": numbers(name)}


def plain(results):
    return {name: np.ravel(r["x"] if isinstance(r, dict) else r)[0] for name, r in results.items()}


def test_a_run_that_was_stopped_goes_on(kept):
    store, make = kept
    made = []

    def stopping(name):
        made.append(name)
        if len(made) == 3:
            raise KeyboardInterrupt
        return make(name)

    with pytest.raises(KeyboardInterrupt):
        store.results(NAMES, stopping)
    assert len(list(store.folder.iterdir())) == 2  # nothing of the third
    store.file(made[0]).write_bytes(b"torn")
    found = store.results(NAMES, stopping)
    assert list(found) == NAMES and plain(found) == {name: float(name[1]) for name in NAMES}
    assert sorted(made[3:]) == sorted({*NAMES} - {made[1]})
    again = store.results(NAMES, lambda name: pytest.fail("made again"))
    assert plain(again) == plain(found)


def test_what_another_process_has_found_is_not_found_again(kept):
    store, make = kept

    def both(name):
        other = f"t{1 - int(name[1])}"
        store.form.write(store.file(other), make("t7"))
        return make(name)

    store.folder.mkdir()
    assert 7.0 in plain(store.results(NAMES[:2], both)).values()


def test_only_what_is_left_is_shown(kept):
    store, make = kept
    store.result("t2", lambda: make("t2"))
    seen = []

    def shown(names):
        for name in names:
            seen.append(name)
            yield name

    store.results(NAMES, make, shown)
    assert sorted(seen) == ["t0", "t1", "t3"]


def test_a_file_without_the_fields_is_none(tmp_path):
    store = Store(tmp_path, arrays("samples", "losses"))
    assert store.find("none") is None
    np.savez(tmp_path / "other.npz", samples=np.zeros(1))
    assert store.find("other") is None
    np.savez(tmp_path / "more.npz", samples=np.zeros(1), losses=np.ones(2), more=np.zeros(3))
    assert store.find("more").keys() == {"samples", "losses"}


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    assert Store(tmp_path, arrays("x")).find("objects") is None
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object))
    assert Store(tmp_path, ARRAY).find("objects") is None


def test_arrays_of_something_else_are_found_again(tmp_path):
    for of, expected in (("one", 0.0), ("one", 0.0), ("two", 2.0), ("one", 3.0)):
        values = {"x": np.array([expected])}
        found = Store(tmp_path, arrays("x", of=of)).result("a", lambda values=values: values)
        assert found["x"] == expected
    np.savez(tmp_path / "a.npz", x=np.zeros(1), asked=np.arange(3.0))  # as it was once told
    assert Store(tmp_path, arrays("x", of="one")).find("a") is None


@dataclass(frozen=True)
class Settings:
    model: ModelSettings
    folder: Path
    classes: tuple[str, ...] = ("3", "8")
    count: int = 5
    resamples: int = 20


def test_a_folder_belongs_to_one_study(tmp_path):
    names, out = ("model", "folder", "classes", "count"), tmp_path / "out"
    settings = Settings(ModelSettings("mlp", 8, 1), Path("data"))
    of_study(out, settings, names, checkpoint="abc")
    assert json.loads((out / "study.json").read_text()) == {
        "model": {"kind": "mlp", "width": 8, "depth": 1},
        "folder": "data",
        "classes": ["3", "8"],
        "count": 5,
        "checkpoint": "abc",
    }
    other = Settings(ModelSettings("mlp", 9, 1), Path("data"), resamples=7)
    before = (out / "study.json").read_bytes()
    of_study(out, Settings(settings.model, Path("data"), resamples=7), names, checkpoint="abc")
    with pytest.raises(ValueError, match=r"out holds a study with other settings of model, checkp"):
        of_study(out, other, names, checkpoint="abd")
    with pytest.raises(
        ValueError, match="other settings of checkpoint: choose another --out, or r"
    ):
        of_study(out, settings, names)
    assert (out / "study.json").read_bytes() == before


def test_a_study_that_was_begun_before_tables_goes_on(tmp_path):
    """Its data had no label, window or stride; those of images have none now."""

    @dataclass(frozen=True)
    class Asked:
        data: DataSettings

    before = {"name": "digits", "path": None, "classes": [], "count": None, "size": None, "seed": 0}
    (tmp_path / "study.json").write_text(json.dumps({"data": before}))
    of_study(tmp_path, Asked(DataSettings("digits")), ["data"])
    with pytest.raises(ValueError, match="other settings of data"):
        of_study(tmp_path, Asked(DataSettings("digits", window=3)), ["data"])
