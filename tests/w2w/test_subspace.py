"""Weight space: PCA invariants, agreement of the methods, planted subspaces, sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w import subspace


def planted(n, d=256, rank=5, noise=0.3, seed=0):
    """Models ``[n, d]``: an offset, ``rank`` factors with entries +-1 and noise; unequal scales.

    Before scaling each entry has variance ``rank + noise^2``, so standardisation only undoes the
    scales.
    """
    structure = np.random.default_rng(99)
    factors = structure.choice([-1.0, 1.0], (rank, d))
    offset, scale = structure.normal(size=d), np.exp(structure.normal(size=d))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank)) @ factors + noise * rng.normal(size=(n, d))
    return (offset + scale * x).astype(np.float32)


def with_gap(n, d, k, seed=0):
    """A matrix whose standardised spectrum falls by about 20 after ``k`` components."""
    rng = np.random.default_rng(seed)
    strong = rng.normal(size=(n, k)) * np.linspace(3, 2, k)
    return (strong @ rng.normal(size=(k, d)) + 0.3 * rng.normal(size=(n, d))).astype(np.float32)


def deviation(space, first, second):
    """Largest difference of two arrays of models, in standard deviations of each entry."""
    return np.abs((np.asarray(first) - np.asarray(second)) / np.asarray(space.std)).max()


def largest_angle(first, second):
    """Largest principal angle between two row spaces, by its sine (accurate near zero)."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    first = np.linalg.qr(first.T)[0].T
    rest = second - second @ first.T @ first
    return np.arcsin(np.linalg.norm(rest, 2).clip(0, 1))


@pytest.mark.parametrize("method", ["gram", "svd", "randomized"])
@pytest.mark.parametrize(("n", "d"), [(40, 300), (300, 40)])
def test_invariants_at_full_rank(method, n, d):
    weights = planted(n, d, noise=1.0)
    space = subspace.fit(weights, method=method)
    assert (space.k, space.n) == (min(n - 1, d), n)
    v = np.asarray(space.components, np.float64)
    np.testing.assert_allclose(v @ v.T, np.eye(space.k), atol=1e-5)
    variances = np.asarray(space.variances)
    assert (np.diff(variances) <= 0).all() and variances[-1] > 0
    np.testing.assert_allclose(variances.sum(), d, rtol=1e-5)
    np.testing.assert_allclose(subspace.explained_variance(space).sum(), 1, rtol=1e-5)
    standard = (weights - weights.mean(0, np.float64)) / weights.std(0, np.float64, ddof=1)
    singular = np.linalg.svd(standard, compute_uv=False)[: space.k]
    np.testing.assert_allclose(variances, singular**2 / (n - 1), rtol=1e-5)

    coefficients = np.asarray(jax.jit(subspace.project)(space, weights))
    sigma = np.sqrt(variances)
    assert (np.abs(coefficients.mean(axis=0)) <= 1e-4 * sigma).all()
    np.testing.assert_allclose(coefficients.var(axis=0, ddof=1), variances, rtol=1e-3)
    rebuilt = jax.jit(subspace.unproject)(space, coefficients)
    assert deviation(space, rebuilt, weights) < 1e-4


@pytest.mark.parametrize(("n", "d"), [(60, 500), (500, 60)])
def test_projection_is_idempotent(n, d):
    weights = jnp.asarray(planted(n, d))
    space = subspace.fit(weights, k=7)
    once = subspace.unproject(space, subspace.project(space, weights))
    twice = subspace.unproject(space, subspace.project(space, once))
    assert deviation(space, twice, once) < 1e-5
    assert deviation(space, once, weights) > 0.01
    one = subspace.unproject(space, subspace.project(space, weights[3]))
    np.testing.assert_allclose(one, once[3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(50, 300), (300, 50)])
def test_methods_agree(n, d):
    """Leading subspaces within 1e-3 rad; with a gap also the components, signs included."""
    k = 6
    weights = with_gap(n, d, k)
    spaces = {m: subspace.fit(weights, k, m) for m in ("svd", "gram", "randomized")}
    reference = spaces.pop("svd")
    standard = (weights - weights.mean(0)) / weights.std(0, ddof=1)
    exact = np.linalg.svd(standard.astype(np.float64))[2][:k]
    assert largest_angle(reference.components, exact) < 1e-5
    for name, space in spaces.items():
        assert largest_angle(space.components, reference.components) < 1e-3, name
        np.testing.assert_allclose(space.variances, reference.variances, rtol=1e-5)
        np.testing.assert_allclose(space.components, reference.components, atol=1e-4)
    # Negative control: another population has another subspace.
    other = subspace.fit(with_gap(n, d, k, seed=1), k)
    assert largest_angle(other.components, reference.components) > 0.5


@pytest.mark.parametrize(("n", "d"), [(50, 333), (333, 50)])
def test_blocks_do_not_matter(tmp_path, n, d):
    """Any block size gives the same space, also from a memory-mapped file."""
    weights = planted(n, d)
    np.save(tmp_path / "weights.npy", weights)
    mapped = np.load(tmp_path / "weights.npy", mmap_mode="r")
    whole = subspace.fit(weights, 5)
    for chunk in (1, 17, 1000):
        pieces = subspace.fit(mapped, 5, chunk=chunk)
        for name in ("mean", "std", "components", "variances"):
            np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-5,
                                       atol=1e-6)  # fmt: skip


def test_signs_follow_a_rule():
    """In each component the entry of largest magnitude is positive, whatever the data's order."""
    weights = planted(60)
    space = subspace.fit(weights, 5)
    components = np.asarray(space.components)
    assert (components[np.arange(5), np.abs(components).argmax(1)] > 0).all()
    again = subspace.fit(weights[::-1], 5)
    np.testing.assert_allclose(again.components, components, atol=1e-5)


def test_entries_that_do_not_vary():
    weights = planted(30, 100)
    weights[:, 10], weights[:, 20] = 0.1, 0.0
    weights[:, 30] = 5 + 1e-6 * np.random.default_rng(0).normal(size=30)  # rounding only
    weights[:, 40] = 1e-5 * weights[:, 41]
    space = subspace.fit(weights, 29)
    assert np.flatnonzero(np.asarray(space.std) == 0).tolist() == [10, 20, 30]
    assert not np.asarray(space.components)[:, [10, 20, 30]].any()
    np.testing.assert_allclose(space.variances.sum(), 97, rtol=1e-5)
    rebuilt = subspace.unproject(space, 50 * jnp.ones((2, 29)))
    np.testing.assert_array_equal(rebuilt[:, [10, 20]], [[np.float32(0.1), 0.0]] * 2)
    changed = weights.copy()
    changed[:, [10, 20, 30]] += 7
    np.testing.assert_array_equal(
        subspace.project(space, changed), subspace.project(space, weights)
    )
    floored = subspace.fit(weights, 5, std_floor=float(np.abs(space.std[40]) * 2))
    assert float(floored.std[40]) == 0 and float(floored.std[41]) > 0


def test_negative_deviations_are_accepted():
    """Released spaces hold some; the sign cancels."""
    weights = planted(30, 100)
    space = subspace.fit(weights, 29)
    sign = jnp.where(jnp.arange(100) % 3 == 0, -1.0, 1.0)
    flipped = space.replace(std=space.std * sign, components=space.components * sign[None])
    coefficients = subspace.project(flipped, weights)
    np.testing.assert_allclose(coefficients, subspace.project(space, weights), atol=1e-5)
    assert deviation(space, subspace.unproject(flipped, coefficients), weights) < 1e-4


def test_planted_subspace_is_recovered():
    """Rank, explained variance and held-out error are those that theory predicts.

    At the true rank r, each entry of a held-out model is predicted from r coordinates that are
    known almost without noise, as by a linear regression fitted on N models. Its expected squared
    error is ``noise^2 (1 + 1/N) (N - 2) / (N - r - 2)`` for Gaussian regressors, less the share
    r / D of the noise, which lies within the subspace.
    """
    d, rank, noise = 256, 5, 0.3
    n, heldout = 300, planted(3000, d, rank, noise, seed=1)
    weights = planted(n, d, rank, noise)
    shares = np.asarray(subspace.explained_variance(subspace.fit(weights, 20)))
    total = rank + noise**2
    np.testing.assert_allclose(shares[:rank].sum(), rank / total, atol=0.01)
    assert shares[rank - 1] > 50 * shares[rank]

    counts, ks = (40, 110, 300), (1, 3, rank, 12)
    errors = subspace.heldout_reconstruction(weights, heldout, counts, ks)
    assert errors.shape == (3, 4)
    for count, error in zip(counts, errors[:, 2], strict=True):
        regression = (1 + 1 / count) * (count - 2) / (count - rank - 2)
        predicted = noise**2 / total * (1 - rank / d) * regression
        np.testing.assert_allclose(error, predicted, rtol=0.05)
    assert (np.diff(errors[:, 2]) < 0).all(), "more models, smaller held-out error"
    assert (np.diff(errors[2, :3]) < -0.1).all(), "each true component counts"
    assert errors[2, 3] > 0.9 * errors[2, 2], "components beyond the rank are noise"


def test_more_components_than_models_use_what_there_is():
    weights, heldout = planted(20), planted(10, seed=1)
    errors = subspace.heldout_reconstruction(weights, heldout, (4, 20), (3, 19))
    assert errors[0, 1] == errors[0, 0] and errors[1, 1] < errors[1, 0]


def test_sampling():
    """100,000 samples have the training coefficients' moments; factor 0 is the mean model."""
    weights = planted(80)
    space = subspace.fit(weights, 5)
    n, sigma = 100_000, np.sqrt(np.asarray(space.variances))
    key = jax.random.key(0)
    one = np.asarray(subspace.sample(key, space, n), np.float64)
    assert (np.abs(one.mean(axis=0)) < 4 * sigma / np.sqrt(n)).all()
    np.testing.assert_allclose(one.std(axis=0), sigma, rtol=0.02)
    correlations = np.corrcoef(one.T) - np.eye(5)
    assert np.abs(correlations).max() < 5 / np.sqrt(n)
    np.testing.assert_array_equal(subspace.sample(key, space, n), one)
    np.testing.assert_allclose(subspace.sample(key, space, n, factor=0.5), one / 2, rtol=1e-6)
    middle = subspace.unproject(space, subspace.sample(key, space, 2, factor=0.0))
    np.testing.assert_array_equal(middle, np.stack([space.mean] * 2))
    mean, std = jnp.arange(5.0), jnp.full(5, 2.0)
    moved = np.asarray(subspace.sample(key, space, n, mean=mean, std=std))
    np.testing.assert_allclose(moved.mean(axis=0), mean, atol=0.03)
    np.testing.assert_allclose(moved.std(axis=0), 2, rtol=0.02)


def test_nearest_models():
    space = subspace.fit(planted(80), 5)
    training = subspace.project(space, jnp.asarray(planted(80)))
    index, cosine = subspace.nearest(3 * training[10:13], training)
    assert index.tolist() == [10, 11, 12]
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    _, new = subspace.nearest(subspace.sample(jax.random.key(0), space, 50), training)
    assert float(new.max()) < 0.999
    index, cosine = subspace.nearest(training, training, exclude_self=True)
    unit = np.asarray(training / np.linalg.norm(training, axis=1, keepdims=True), np.float64)
    cosines = unit @ unit.T - 2 * np.eye(80)
    np.testing.assert_array_equal(index, cosines.argmax(axis=1))
    np.testing.assert_allclose(cosine, cosines.max(axis=1), atol=1e-6)


def test_truncation_and_fewer_coefficients():
    weights = planted(60)
    space = subspace.fit(weights, 8)
    small = subspace.truncate(space, 3)
    coefficients = subspace.project(space, weights)
    np.testing.assert_allclose(subspace.project(small, weights), coefficients[:, :3], atol=1e-5)
    padded = coefficients.at[:, 3:].set(0)
    for got in (subspace.unproject(small, coefficients[:, :3]),
                subspace.unproject(space, coefficients[:, :3])):  # fmt: skip
        np.testing.assert_allclose(got, subspace.unproject(space, padded), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="9 coefficients for a space of 8"):
        subspace.unproject(space, jnp.zeros(9))
    with pytest.raises(ValueError, match="k = 9 of a space of 8"):
        subspace.truncate(space, 9)


def test_save_and_load(tmp_path):
    space = subspace.fit(planted(30, 64), 5)
    path = subspace.save(tmp_path / "space.safetensors", space, {"layout": "abc"})
    loaded, header = subspace.load(path)
    assert header == {"layout": "abc"} and loaded.n == 30
    for name in ("mean", "std", "components", "variances"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(space, name))
        assert getattr(loaded, name).dtype == jnp.float32


def test_bad_input():
    weights = planted(10, 20)
    with pytest.raises(ValueError, match="'pca'; expected one of gram, svd, randomized"):
        subspace.fit(weights, method="pca")
    with pytest.raises(
        ValueError, match="k = 10 components of 10 models with 20 entries; at most 9"
    ):
        subspace.fit(weights, 10)
    with pytest.raises(ValueError, match=r"\[N >= 2, D\], got shape \(20,\)"):
        subspace.fit(weights[0])
    for method in ("gram", "svd", "randomized"):
        with pytest.raises(ValueError, match="k = 8 components, but the 20 models span only 4"):
            subspace.fit(np.tile(planted(5, 20, noise=1.0), (4, 1)), 8, method)
    with pytest.raises(ValueError, match="counts up to 11 of 10"):
        subspace.heldout_reconstruction(weights, weights, (11,), (2,))
    weights[7, 3] = np.nan
    with pytest.raises(ValueError, match="model 7 are not finite"):
        subspace.fit(weights)
