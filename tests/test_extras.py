"""What an extra installs is imported where it is used, and asked for by name where it is absent."""

import sys

import pytest

from scoresens._extras import needed


def test_a_module_that_is_there_is_returned():
    assert needed("json.decoder", "reading", "sweeps") is sys.modules["json.decoder"]


def test_one_that_is_not_there_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError) as error:
        needed("ot", "this distance", "gap")
    assert str(error.value) == (
        "this distance needs the extra gap: pip install 'scoresens[gap]' "
        "(import of ot halted; None in sys.modules)"
    )
