"""Training a population: groups, devices and interruptions do not change the adapters."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from common import sharding
from tests.w2w import small
from w2w import build, context, generate, train

# optax.adam: 1 - decay**count
pytestmark = pytest.mark.usefixtures("standard_promotion")

CONFIG = ConfigDict(
    dict(
        seed=3,
        adapter=dict(
            num_steps=3,
            batch=2,
            class_batch=1,
            learning_rate=1e-2,
            prior_weight=1.0,
            weight_decay=0.0,
            ema_decay=0.0,
            time_mean=0.0,
            time_std=1.0,
            group=1,
        ),
    )
)


@pytest.fixture(scope="module")
def ctx():
    tree = small.params()
    return context.Context(
        small.MODEL, tree, small.LORA, small.layout(tree), small.shared(tree), generate.Drawing()
    )


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16)).astype(np.uint8)


def fit(ctx, frames, folder, group=1):
    config = CONFIG.copy_and_resolve_references()
    config.adapter.group = group  # for each device
    return build.fit_adapters(ctx, frames, config, folder)


def test_groups_and_devices_do_not_matter(ctx, frames, tmp_path):
    assert jax.device_count() == 4
    four = fit(ctx, frames, tmp_path / "a", group=1)
    all_at_once = fit(ctx, frames, tmp_path / "b", group=2)
    assert four.shape == (6, ctx.layout.size)
    # 2 % of one step: Adam divides by the gradient's size, so that where it is small, the rounding
    # of another batch size shows. Other noise or other frames differ by whole steps.
    np.testing.assert_allclose(four, all_at_once, atol=2e-4)
    last = fit(ctx, frames[5:], tmp_path / "c")
    np.testing.assert_allclose(four[5], last[0], atol=2e-4)
    assert np.abs(four[0] - four[1]).max() > 1e-3


def test_groups_share_one_compilation(ctx, frames, tmp_path):
    train.compiled_population_step.cache_clear()
    fit(ctx, frames, tmp_path, group=1)  # two groups on four devices
    assert train.compiled_population_step.cache_info().currsize == 1
    recipe = context.adapter_recipe(CONFIG)
    rows = NamedSharding(sharding.make_mesh(devices=jax.local_devices()), PartitionSpec("data"))
    step = train.compiled_population_step(ctx.model, ctx.lora_config, recipe, rows)
    assert train.compiled_population_step.cache_info().currsize == 1  # the one that was used
    assert step._cache_size() == 1


def test_the_adapter_is_the_moving_average(ctx, frames, tmp_path):
    config = CONFIG.copy_and_resolve_references()
    config.adapter.ema_decay = 0.9
    kept = build.fit_adapters(ctx, frames[:2], config, tmp_path / "kept")
    last = fit(ctx, frames[:2], tmp_path / "last")
    # After three updates the average has mixed in 1/10, 2/11 and 3/12 of the earlier values.
    assert np.abs(kept - last).max() > 1e-3


def test_an_interrupted_population_continues(ctx, frames, tmp_path, monkeypatch):
    whole = fit(ctx, frames, tmp_path / "whole", group=1)
    compiled = train.compiled_population_step
    calls = []

    def interrupted(*static):
        step = compiled(*static)

        def run(*arguments):
            calls.append(1)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return step(*arguments)

        return run

    monkeypatch.setattr(train, "compiled_population_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(ctx, frames, tmp_path / "broken", group=1)
    done = len(list((tmp_path / "broken").glob("*.safetensors")))
    assert done == 1
    calls.clear()
    calls.extend([0] * 100)
    again = fit(ctx, frames, tmp_path / "broken", group=1)
    assert len(calls) == 103, "the finished group was trained again"
    np.testing.assert_array_equal(again, whole)


def test_a_population_that_diverges_is_an_error(ctx, frames, tmp_path):
    config = CONFIG.copy_and_resolve_references()
    config.adapter.learning_rate = float("inf")
    with pytest.raises(FloatingPointError, match="group 0"):
        build.fit_adapters(ctx, frames[:2], config, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
