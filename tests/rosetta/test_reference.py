"""The published score against its definition, with maps enlarged by torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rosetta import reference, resize
from rosetta.units import MapError
from tests.rosetta.maps import activations, plan_of

pytestmark = pytest.mark.parity


def enlarge(x, size):
    moved = torch.from_numpy(x).permute(0, 3, 1, 2).double()  # its float32 positions are inexact
    larger = F.interpolate(moved, size=(size, size), mode="bilinear", align_corners=False)
    return larger.float()


@pytest.mark.parametrize("small, big", [(4, 4), (4, 7), (7, 14), (8, 14), (1, 5), (14, 32)])
def test_resize_and_its_adjoint(small, big):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, small, small, 3)).astype(np.float32)
    y = random.normal(size=(2, big, big, 3)).astype(np.float32)
    expected = enlarge(x, big).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(resize.upsample(x, big), expected, atol=1e-6)
    product = (np.asarray(resize.adjoint(y, small)) * x).sum((1, 2))
    np.testing.assert_allclose(product, (y * expected).sum((1, 2)), atol=1e-4)
    total, square = resize.moments(x, (big,))[0]
    np.testing.assert_allclose(total, expected.sum((0, 1, 2)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(square, (expected**2).sum((0, 1, 2)), rtol=1e-5)
    if small < big:
        with pytest.raises(ValueError, match=f"not from {big} to {small} cells"):
            resize.upsample(y, small)


def test_several_sizes_at_once():
    """Bands of rows (112 cells in eight, 13 in one) give what the whole matrices give."""
    random = np.random.default_rng(1)
    for big, sizes in ((112, (4, 7, 28, 32, 112)), (13, (8, 13))):
        y = random.normal(size=(2, big, big, 3)).astype(np.float32)
        for size, found in zip(sizes, resize.adjoints(y, sizes), strict=True):
            m = resize.matrix(size, big)
            expected = np.einsum("oi,boqc,qj->bijc", m, y, m, optimize=True)
            np.testing.assert_allclose(found, expected, atol=1e-4)
    x = random.normal(size=(3, 7, 7, 2)).astype(np.float32)
    sizes = (32, 7, 8)
    for size, (total, square) in zip(sizes, resize.moments(x, sizes), strict=True):
        expected = enlarge(x, size).numpy()
        np.testing.assert_allclose(total, expected.sum((0, 2, 3)), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(square, (expected**2).sum((0, 2, 3)), rtol=1e-5)


def published(batches, a, b):
    """Steps 1 to 3 of the published code for one pair of models, in torch."""
    statistics = {}
    for model in (a, b):
        for tap in batches[0][model]:
            flat = [torch.from_numpy(x[model][tap]).flatten(0, 2).double() for x in batches]
            mean = torch.stack([x.mean(0) for x in flat]).mean(0)
            deviation = torch.stack([x.var(0) for x in flat]).mean(0).sqrt()
            statistics[model, tap] = (mean + 0).float().numpy(), deviation.float().numpy()
    total = 0
    for batch in batches:
        z = {
            (m, t): (batch[m][t] - mean) / (deviation + 1e-5)
            for (m, t), (mean, deviation) in statistics.items()
        }
        rows = []
        for tap in batch[a]:
            columns = []
            for other in batch[b]:
                size = max(z[a, tap].shape[1], z[b, other].shape[1])
                x, y = (
                    enlarge(v, size).transpose(0, 1).flatten(1).double()
                    for v in (z[a, tap], z[b, other])
                )
                norm = torch.outer((x**2).sum(1), (y**2).sum(1)).sqrt()
                columns.append(torch.nan_to_num(x @ y.T / norm))
            rows.append(torch.cat(columns, 1))
        total = total + torch.cat(rows)
    return (total / len(batches)).numpy()


def test_published_score():
    maps = activations(12, seed=3)
    maps["net"]["layer2"][..., 2] = 0
    plan = plan_of(maps, (("gan", "net"), ("gan", "vit")))
    batches = [
        {m: {t: x[i : i + 4] for t, x in taps.items()} for m, taps in maps.items()}
        for i in range(0, 12, 4)
    ]
    statistics, state = reference.init_stats(plan), reference.init_score(plan)
    with pytest.raises(ValueError, match="no batches"):
        reference.table(plan, state, ("gan", "net"))
    for batch in batches:
        statistics = reference.stats(plan, statistics, batch)
    for batch in batches:
        state = reference.score(plan, state, statistics, batch)
    for pair in plan.pairs:
        expected = published(batches, *pair)
        actual = reference.table(plan, state, pair)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
        assert np.abs(expected).max() > 0.5
    assert not reference.table(plan, state, ("gan", "net"))[:, 6].any()


def test_units_that_are_not_finite_are_named():
    """The published code gives such a unit score 0 with everything."""
    maps = activations(4)
    plan = plan_of(maps, (("gan", "net"),))
    maps["net"]["layer2"][2, 1, 1, 4] = np.nan
    statistics = reference.stats(plan, reference.init_stats(plan), maps)
    state = reference.score(plan, reference.init_score(plan), statistics, maps)
    with pytest.raises(MapError, match="'net': 1 units .* tap 'layer2' channel 4 .in 1 images"):
        reference.table(plan, state, ("gan", "net"))
