"""The theorem of docs/parallel_scan.md, and its pictures."""

import numpy as np
import pytest

import draw_parallel_scan
from draw_parallel_scan import F, G, apply, compose


@pytest.mark.parametrize("seed", range(20))
def test_two_clipped_affine_maps_are_one(seed):
    rng = np.random.default_rng(seed)
    m, s = rng.normal(size=(2, 2))
    low = rng.normal(size=2)
    high = low + rng.exponential(size=2)
    f, g = zip(m, s, low, high, strict=True)
    h = np.linspace(-5, 5, 101)
    for first, second in ((f, g), (g, f), (F, g), (f, G), (F, G)):
        expected = apply(second, apply(first, h))
        np.testing.assert_allclose(
            apply(compose(second, first), h), expected, atol=1e-12
        )


def test_pictures(tmp_path):
    draw_parallel_scan.main(["--out", str(tmp_path / "new")])
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["maps.png", "scan.png"]
