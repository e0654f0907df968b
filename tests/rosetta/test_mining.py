"""Streaming correlations against brute force, in any split into batches, devices and blocks."""

import jax
import numpy as np
import pytest

import rosetta.mined
from common.sharding import batch_sharding, make_mesh, place
from common.storage import load_arrays, save_arrays
from rosetta import mining, neighbours, tables
from rosetta.units import Layout, MapError
from tests.rosetta.maps import activations, brute_force, plan_of

IMAGES = 24


def split(maps, sizes):
    ends = np.cumsum(sizes)
    for stop, size in zip(ends, sizes, strict=True):
        yield {m: {t: a[stop - size : stop] for t, a in taps.items()} for m, taps in maps.items()}


def mine(plan, maps, sizes):
    update = mining.make_update(plan)
    state = None
    for batch in split(maps, sizes):
        state = mining.init(plan, batch) if state is None else state
        state = update(state, batch)
    return state


@pytest.fixture(scope="module")
def mined():
    maps = activations(IMAGES)
    plan = plan_of(maps, permutations=2)
    return maps, plan, mine(plan, maps, [8, 8, 8])


def test_equals_brute_force(mined):
    maps, plan, state = mined
    for pair in plan.pairs:
        table = tables.correlations(plan, state, pair)
        expected = brute_force(maps[pair[0]], maps[pair[1]])
        np.testing.assert_allclose(table, expected, atol=1e-5)
        assert np.abs(expected).max() > 0.5


def test_half_of_a_models_own_table_is_the_others_transpose(mined):
    """Without exchanged images; with them, both halves are computed."""
    maps, _, _ = mined
    plan = plan_of(maps, pairs=(("gan", "gan"),))
    table = tables.correlations(plan, mine(plan, maps, [8, 8, 8]), ("gan", "gan"))
    np.testing.assert_allclose(table, brute_force(maps["gan"], maps["gan"]), atol=1e-5)


def test_batches_do_not_matter(mined):
    maps, plan, state = mined
    other = mine(plan, maps, [12, 12])
    for pair in plan.pairs:
        first, second = (tables.correlations(plan, s, pair) for s in (state, other))
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_padding_does_not_count(mined):
    maps, plan, state = mined
    update = mining.make_update(plan)
    (first, last) = split(maps, [16, 8])
    padded = jax.tree.map(lambda a: np.concatenate([a, np.full_like(a, np.nan)]), last)
    mask = np.arange(16) < 8
    other = update(mining.init(plan, first), first)
    other = update(other, padded, mask)
    assert int(other.images) == IMAGES
    pair = ("gan", "net")
    expected = tables.correlations(plan, state, pair)
    np.testing.assert_allclose(tables.correlations(plan, other, pair), expected, atol=1e-6)


def test_offset_far_from_zero(mined):
    maps, plan, state = mined
    moved = jax.tree.map(lambda a: a + np.float32(300), maps)
    pair = ("gan", "net")
    expected = brute_force(moved["gan"], moved["net"])
    actual = tables.correlations(plan, mine(plan, moved, [8] * 3), pair)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_devices_do_not_matter(mined):
    maps, plan, _ = mined
    plain = plan_of(maps)
    expected = mine(plain, maps, [8, 8, 8])
    mesh = make_mesh()
    assert mesh.devices.size == 4
    update = mining.make_update(plain, mesh)
    state = None
    for batch in split(maps, [8, 8, 8]):
        if state is None:
            state = mining.init(plain, batch, mesh=mesh)
            state = place(state, mining.state_shardings(state, mesh))
        batch = jax.tree.map(lambda a: jax.device_put(a, batch_sharding(mesh)), batch)
        state = update(state, batch)
    table = state.products["gan/net/4/14"].high
    assert table.shape == (8, 4)  # five rows on four devices
    assert table.sharding.shard_shape(table.shape) == (2, 4)
    for pair in plain.pairs:
        first, second = (tables.correlations(plain, s, pair) for s in (expected, state))
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_permuted_tables(mined):
    maps, plan, state = mined
    pair = ("gan", "vit")
    null = tables.correlations(plan, state, pair, permuted=True)
    key = jax.random.key(plan.seed)
    for index in range(2):
        exchanged = []
        for batch in range(3):
            rolls = jax.random.permutation(jax.random.fold_in(key, batch), 7)[:2] + 1
            place = 8 * batch + (np.arange(8) + int(rolls[index])) % 8
            exchanged.append(maps["vit"]["mlp"][place])
        expected = brute_force(maps["gan"], {"mlp": np.concatenate(exchanged)})
        np.testing.assert_allclose(null[index], expected, atol=1e-5)


def test_state_resumes_from_disk(mined, tmp_path):
    maps, plan, state = mined
    first, second, third = split(maps, [8, 8, 8])
    update = mining.make_update(plan)
    half = update(update(mining.init(plan, first), first), second)
    leaves, structure = jax.tree.flatten(half)
    path = save_arrays(tmp_path / "half.safetensors", {str(i): x for i, x in enumerate(leaves)})
    found, _ = load_arrays(path)
    loaded = jax.tree.unflatten(structure, [found[str(i)] for i in range(len(leaves))])
    jax.tree.map(np.testing.assert_array_equal, update(loaded, third), state)


def test_parts_are_merged(mined):
    maps, plan, state = mined
    update = mining.make_update(plan)
    first, second = split(maps, [8, 16])
    start = jax.device_get(mining.init(plan, first))
    merged = mining.merge(update(start, first), update(start, second))
    pair = ("gan", "gan")
    expected = tables.correlations(plan, state, pair)
    np.testing.assert_allclose(tables.correlations(plan, merged, pair), expected, atol=1e-6)
    with pytest.raises(ValueError, match="different centres"):
        mining.merge(merged, update(mining.init(plan, second), second))


def test_blocks_of_rows_give_the_same_neighbours(mined):
    maps, plan, state = mined
    for pair in (("gan", "net"), ("gan", "gan")):
        whole = neighbours.nearest(plan, state, pair, 3)
        table = tables.correlations(plan, state, pair)
        expected = neighbours.from_table(table, 3, pair[0] == pair[1])
        for field in ("row_scores", "row_partners", "column_scores", "column_partners"):
            np.testing.assert_array_equal(getattr(whole, field), getattr(expected, field))
    names = ("gan", "net")
    parts = []
    gan = plan.layout("gan")
    for start, stop in ((0, 3), (3, 7), (7, 12)):
        part = mining.Plan((gan.block(start, stop), plan.layout("net")), (names,))
        parts.append(neighbours.nearest(part, mine(part, maps, [8] * 3), names, 3))
    together = neighbours.combine(parts)
    whole = neighbours.nearest(plan, state, names, 3)
    np.testing.assert_array_equal(together.row_partners, whole.row_partners)
    np.testing.assert_array_equal(together.column_partners, whole.column_partners)
    np.testing.assert_allclose(together.column_scores, whole.column_scores, atol=1e-6)


def test_constant_units_score_zero():
    maps = activations(8)
    maps["gan"]["block2"][..., 1] = 5.3
    maps["gan"]["block2"][..., 2] = 5.3 + 1e-6 * np.sign(maps["gan"]["block2"][..., 2])
    maps["net"]["layer3"][..., 0] = 0
    plan = plan_of(maps, (("gan", "net"),))
    state = mine(plan, maps, [4, 4])
    table = tables.correlations(plan, state, ("gan", "net"))
    assert not table[[6, 7]].any() and not table[:, 10].any()
    np.testing.assert_array_equal(tables.constant_units(plan, state, "gan"), [6, 7])
    np.testing.assert_array_equal(tables.constant_units(plan, state, "net"), [10])
    assert np.isfinite(table).all() and (table != 0).sum() == 10 * 12


def test_bad_input_is_named():
    maps = activations(8)
    del maps["vit"]
    plan = plan_of(maps, (("gan", "net"),))
    update = mining.make_update(plan)
    state = mining.init(plan, maps)
    with pytest.raises(MapError, match="no images have been mined"):
        tables.correlations(plan, state, ("gan", "net"))
    fewer = {**maps, "net": {t: a[:4] for t, a in maps["net"].items()}}
    with pytest.raises(MapError, match="different numbers of images: {'gan': 8, 'net': 4"):
        update(state, fewer)
    with pytest.raises(MapError, match="no activations of model 'net'"):
        update(state, {"gan": maps["gan"]})
    with pytest.raises(MapError, match="'net': maps layer1 14x14x3"):
        update(state, {**maps, "net": {**maps["net"], "layer1": maps["net"]["layer1"][..., 1:]}})
    with pytest.raises(MapError, match="'layer1': maps of 14 x 13 cells are not square"):
        Layout.of("net", {"layer1": maps["net"]["layer1"][:, :, 1:]})
    names = {"gan": range(8), "net": range(8)}
    moved = {**names, "net": [0, 1, 2, 4, 3, 5, 6, 7]}
    with pytest.raises(MapError, match="different images: number 3 is 3 for 'gan' and 4 for 'net'"):
        update(state, maps, images=moved)
    with pytest.raises(MapError, match="'net': 7 names of 8 images"):
        update(state, maps, images={**names, "net": range(7)})
    with pytest.raises(MapError, match="'net' has no names of its images; there are .'gan'"):
        update(state, maps, images={"gan": range(8)})
    broken = jax.tree.map(np.copy, maps)
    broken["net"]["layer2"][5, 1, 2, 3] = np.nan
    broken["net"]["layer2"][6, 1, 2, 3] = np.inf
    state = update(state, broken, images=names)
    message = "'net': 1 units .* tap 'layer2' channel 3 .in 2 images"
    with pytest.raises(MapError, match=message):
        tables.correlations(plan, state, ("gan", "net"))
    with pytest.raises(KeyError, match="no permuted table"):
        tables.correlations(plan, update(mining.init(plan, maps), maps), ("gan", "net"), True)


def test_unit_statistics(mined):
    maps, plan, state = mined
    for name, taps in maps.items():
        mean, deviation = tables.unit_statistics(plan, state, name)
        flat = [x.reshape(-1, x.shape[3]).astype(np.float64) for x in taps.values()]
        np.testing.assert_allclose(mean, np.concatenate([x.mean(0) for x in flat]), rtol=1e-4,
                                   atol=1e-4)  # fmt: skip
        np.testing.assert_allclose(deviation, np.concatenate([x.std(0) for x in flat]), rtol=1e-4)


def test_a_run_in_blocks_is_the_run(mined, tmp_path):
    """Passes over blocks of the generator's units, joined and saved, equal one pass."""
    maps, plan, state = mined
    whole = rosetta.mined.reduced(plan, state, 4)
    blocks = rosetta.mined.row_blocks(plan, 5)
    assert [len(block.layout("gan")) for block in blocks] == [5, 5, 2]
    assert rosetta.mined.row_blocks(plan, 0) == rosetta.mined.row_blocks(plan, 12) == [plan]
    parts = []
    for index, block in enumerate(blocks):
        found = rosetta.mined.reduced(block, mine(block, maps, [8] * 3), 4)
        path = rosetta.mined.save(tmp_path / f"{index}.safetensors", found)
        parts.append(rosetta.mined.load(path))
        assert parts[-1].plan == block
    together = rosetta.mined.joined(plan, parts)
    assert set(together.neighbours) == set(whole.neighbours) and together.images == IMAGES
    assert len(whole.neighbours) == 9  # three pairs, each with two exchanges
    for key, expected in whole.neighbours.items():
        found = together.neighbours[key]
        for field in ("rows", "columns", "row_partners", "column_partners"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
        np.testing.assert_allclose(found.row_scores, expected.row_scores, atol=1e-6)
        np.testing.assert_allclose(found.column_scores, expected.column_scores, atol=1e-6)
    assert set(together.means) == set(maps)
    for name in maps:
        np.testing.assert_allclose(together.means[name], whole.means[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(together.deviations[name], whole.deviations[name], rtol=1e-5)
    near = together.nearest(("gan", "net"), 2, 1)
    expected = whole.neighbours["gan", "net", 1].best(2)
    np.testing.assert_allclose(near.row_scores, expected.row_scores, atol=1e-6)
    with pytest.raises(ValueError, match="5 partners of the 4 that were kept"):
        together.nearest(("gan", "net"), 5)
    with pytest.raises(KeyError, match="permutation 2, is not among"):
        together.nearest(("gan", "net"), 1, 2)
    with pytest.raises(ValueError, match="10 rows of 12"):
        rosetta.mined.joined(plan, parts[:2])
