"""Scaling of programs over devices: identities of the laws, and what is not told from too little."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import fit, laws
from analysis.errors import DataError
from analysis.hpc import scaling
from tests.analysis.studies import measure, outcomes

P = 2.0 ** np.arange(7)


def times(f: float = 0.05) -> np.ndarray:
    return outcomes("amdahl", {"t1": 100.0, "f": f}, {"p": P})


def test_amdahls_data_have_karp_and_flatts_fraction_everywhere():
    rows = scaling(measure("amdahl", {"p": P}, times()), bootstrap=0).rows
    assert (rows[0].speedup, rows[0].efficiency) == (1.0, 1.0)
    assert [row.serial_fraction for row in rows[1:]] == pytest.approx([0.05] * 6, abs=1e-12)


def test_the_usl_without_coherence_is_amdahl():
    x = {"p": P}
    usl = outcomes("usl", {"g": 1.0, "s": 0.05, "k": 0.0}, x)
    np.testing.assert_allclose(usl, times()[0] / times(), rtol=1e-14)
    found = fit("usl", measure("usl", x, usl), bootstrap=0)
    assert found.params["k"] == pytest.approx(0, abs=1e-12)


def test_the_peak_of_a_noisy_usl_is_found():
    p = 2.0 ** np.arange(13)
    for seed in range(5):
        scatter = np.exp(0.01 * np.random.default_rng(seed).standard_normal(13))
        y = outcomes("usl", {"g": 1000.0, "s": 0.02, "k": 1e-5}, {"p": p}) * scatter
        found = fit("usl", measure("usl", {"p": p}, y), bootstrap=0)
        want = np.sqrt((1 - 0.02) / 1e-5)
        assert float(laws.get("usl").peak(found.params)) == pytest.approx(want, rel=0.1)


def test_weak_scaling_counts_the_work_of_all_devices():
    t = 10.0 * P / outcomes("gustafson", {"X1": 1.0, "f": 0.1}, {"p": P})
    found = scaling(measure("amdahl", {"p": P}, t), weak=True, bootstrap=0)
    assert [row.efficiency for row in found.rows] == pytest.approx((t[0] / t).tolist())
    (gustafson, _), _ = found.fits
    assert gustafson.params["f"] == pytest.approx(0.1, abs=1e-9)


def test_a_baseline_above_one_and_too_few_sizes_are_said():
    found = scaling(measure("amdahl", {"p": P[1:4]}, times()[1:4]), bootstrap=0)
    assert found.remarks[0].endswith(
        "the baseline is p = 2; what one device or node would do better is hidden"
    )
    assert any(sentence.startswith("no usl: ") and "3 distinct p" in sentence for sentence in found.problems)
    with pytest.raises(DataError, match="1 number of devices; efficiency needs 2"):
        scaling(measure("amdahl", {"p": P[:1]}, times()[:1]))
