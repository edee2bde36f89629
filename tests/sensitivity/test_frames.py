"""Law 6: one answer in all frames. The path of every process is the canonical one, so that what is
asked at equal tau, from the same canonical noise, agrees to rounding, whatever the solver's error.
With the laws in full on two processes (`laws.IN_FULL`) this carries them to every other."""

import laws
import pytest
from frames import changes, check_one_answer, finite_changes, paths


@pytest.mark.parametrize(
    "asked",
    [paths, *(pytest.param(asked, marks=pytest.mark.slow) for asked in (changes, finite_changes))],
)
@pytest.mark.parametrize(
    "name",
    [
        name if name == "FlowMatching" else pytest.param(name, marks=pytest.mark.slow)
        for name in laws.PROCESSES
        if name != "EDM"
    ],
)
def test_one_answer_in_all_frames(asked, name):
    check_one_answer(asked, laws.PROCESSES[name])
