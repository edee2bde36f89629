"""Tables line up, and numbers stand in them with their intervals."""

import math

import pytest

from scoresens.report.tables import cell, number, table, validation_table
from scoresens.statistics import Estimate


def test_entries_stand_under_their_column():
    text = table({"a": {"one": "1", "two": "2.50"}, "longer": {"one": "10.0"}}, "name")
    assert text.splitlines() == [
        "name     one   two",
        "------  ----  ----",
        "a          1  2.50",
        "longer  10.0",
    ]


def test_numbers_are_shown_with_their_intervals():
    found = {"counterfactual_data": {"median_cosine": Estimate(0.9512, 0.9, 0.981)}}
    lines = validation_table(found).splitlines()
    assert lines[0].split() == ["method", "median", "cosine"]
    assert lines[2] == "counterfactual_data  0.95 [0.90, 0.98]"


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (0.12345, ".2f", "0.12"),
        (-0.12345, ".3g", "-0.123"),
        (9999.0, ".2f", "9999.00"),
        (-123456.0, ".2f", "-1e+05"),  # a black box may overshoot
        (None, ".2f", "-"),
        (math.nan, ".2f", "-"),
        (math.inf, ".2f", "-"),
    ],
)
def test_numbers_fit_their_column(value, form, text):
    assert number(value, form) == text
    assert cell((value, value, value), form) == f"{text} [{text}, {text}]"
