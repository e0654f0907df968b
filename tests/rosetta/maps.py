"""Random activation maps, and correlations by brute force, for the tests of mining."""

import numpy as np

from rosetta.state import Plan
from rosetta.units import Layout

SHAPES = {
    "gan": {"block1": (4, 5), "block2": (18, 4), "rgb": (18, 3)},
    "net": {"layer1": (14, 4), "layer2": (7, 6), "layer3": (7, 3)},
    "vit": {"mlp": (8, 7)},
}


def activations(images, seed=0, shapes=SHAPES):
    """`{model: {tap: float32 [images, size, size, channels]}}`; units share smooth signals."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(images, 2, 2, 3))
    result = {}
    for model, taps in shapes.items():
        result[model] = {}
        for tap, (size, channels) in taps.items():
            signal = np.repeat(np.repeat(common, -(-size // 2), 1), -(-size // 2), 2)
            mixed = signal[:, :size, :size] @ random.normal(size=(3, channels))
            noise = random.normal(size=mixed.shape)
            offset = 10 * random.normal(size=channels)
            scale = np.exp(random.normal(size=channels))
            result[model][tap] = ((mixed + noise) * scale + offset).astype(np.float32)
    return result


def plan_of(maps, pairs=(("gan", "net"), ("gan", "vit"), ("gan", "gan")), **settings):
    layouts = tuple(Layout.of(name, taps) for name, taps in maps.items())
    return Plan(layouts, pairs, **settings)


def enlarge(x, size):
    """Bilinear interpolation with half-pixel centres, written out for one output at a time."""
    small = x.shape[1]
    if small == size:
        return x.astype(np.float64)
    for axis in (1, 2):
        parts = []
        for index in range(size):
            position = min(max((index + 0.5) * small / size - 0.5, 0), small - 1)
            low = int(position)
            high, weight = min(low + 1, small - 1), position - low
            parts.append(
                (1 - weight) * np.take(x, low, axis).astype(np.float64)
                + weight * np.take(x, high, axis)
            )
        x = np.stack(parts, axis)
    return x


def brute_force(first, second):
    """Pearson correlations of all units of two models, by `numpy.corrcoef` of enlarged maps."""
    rows = []
    for a in first.values():
        columns = []
        for b in second.values():
            size = max(a.shape[1], b.shape[1])
            flat = [enlarge(x, size).reshape(-1, x.shape[3]).T for x in (a, b)]
            columns.append(np.corrcoef(*flat)[: a.shape[3], a.shape[3] :])
        rows.append(np.concatenate(columns, 1))
    return np.concatenate(rows, 0)
