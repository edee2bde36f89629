"""`scoresens validate` with experiment = "finetune"."""

import numpy as np
import pytest
from command_line import CHANGE, DATA, is_complete, rows, scoresens, with_checkpoint

from scoresens.studies.finetuning import compare

pytestmark = pytest.mark.slow  # commands from end to end

MEASURES = {
    "median_cosine",
    "pooled_pearson",
    "relative_l2",
    "magnitude_ratio",
    "magnitude_spearman",
}


def test_validate_compares_every_method_with_the_truth(tmp_path, trained):
    finetune = "[finetune]\nsteps = 10\nbatch_size = 16\nwarmup = 1\nema_halflife = 5"
    text = (
        f"count = 9\nsteps = 4\nrepeats = 2\nafter = [3]\nresamples = 40\n{DATA}{CHANGE}{finetune}"
    )
    ran = scoresens("validate", with_checkpoint(tmp_path, trained, text), out=tmp_path / "out")
    assert is_complete(ran, "report.png", "displacements.npz", "models", "study.json")
    result, arrays = ran.result, dict(np.load(tmp_path / "out" / "displacements.npz"))
    at_the_end, rest = ran.printed.split("counterfactual_data, by its reliability")
    by_reliability, by_steps = rest.split("pooled Pearson, by the number of steps")
    groups = result["reliability"]["groups"]
    assert sum(group["count"] for group in groups) == 9
    assert len(rows(by_reliability)) == sum(group["count"] > 0 for group in groups)
    assert result["moved"] == pytest.approx(0.2 * 54 / 60)  # 6 of 60 images are of the class
    assert list(rows(at_the_end)) == list(rows(by_steps)) == result["methods"]
    assert result["methods"] == [
        *(f"counterfactual_{base}" for base in ("data", "model", "sharp", "steps")),
        *(f"first_order_{base}" for base in ("data", "model", "sharp")),
        "class_mean",
        "wiener",
        "another_finetuning",
    ]
    pairs = arrays["changed"] - arrays["control"]
    real = pairs.mean(0)
    for method in result["methods"]:
        matched = pairs if method == "another_finetuning" else (arrays[method], real)
        expected = compare(*matched, resamples=40)
        assert result[method].keys() == MEASURES
        for measure, found in result[method].items():
            assert found == pytest.approx(expected[measure]._asdict()), (method, measure)
    finite = arrays["counterfactual_data"].reshape(9, -1)
    inner = (finite * real.reshape(9, -1)).sum(1)
    alike = inner / np.linalg.norm(finite, axis=1) / np.linalg.norm(real.reshape(9, -1), axis=1)
    assert result["bound_held"] == np.mean(alike >= result["cosine_bound"])
    assert f"held for {result['bound_held']:.0%} of the samples" in ran.printed
    assert result["mean_norm"]["real"] == pytest.approx(
        np.linalg.norm(real.reshape(9, -1), axis=1).mean()
    )
    drift = (arrays["control"] - arrays["before"]).reshape(18, -1)
    drift = np.linalg.norm(drift, axis=1).mean()
    assert result["mean_norm"]["control_drift"] == pytest.approx(drift)
    assert list(result["after"]) == ["3", "10"]
    assert result["after"]["10"] == {method: result[method] for method in result["methods"]}
    kept = [np.load(tmp_path / "out" / "models" / f"{kind}-0.npz")["samples"]
            for kind in ("control", "changed")]  # fmt: skip
    np.testing.assert_array_equal(kept[0][1], arrays["control"][0])
    assert np.abs(kept[1][0] - kept[1][1]).max() > 1e-6  # after 3 steps and after 10
    other = with_checkpoint(tmp_path, trained, text.replace("count = 9", "count = 8"))
    refused = scoresens("validate", other, out=tmp_path / "out")
    assert refused.code == 2 and "holds a study with other settings of count" in refused.told
