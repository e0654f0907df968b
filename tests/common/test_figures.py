"""Figures: what is painted where, and what is refused."""

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from common import figures


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def flat(values, size=8):
    """Images of one grey value each, `[count, size, size, 1]`."""
    return np.ones((len(values), size, size, 1)) * np.reshape(values, (-1, 1, 1, 1))


def squares(picture, value):
    """Number of pixels of the grey value (0..255)."""
    return int((picture == value).all(-1).sum())


def test_contact_sheet_paints_every_image_in_reading_order(tmp_path):
    values = np.array([10, 60, 90, 120, 150])
    path = figures.contact_sheet(flat(values / 255), 3, tmp_path / "sheet.png", scale=4)
    picture = read(path)
    centres = {}
    for value in values:
        rows, columns = np.nonzero((picture == value).all(-1))
        assert rows.size == 32 * 32  # each enlarged exactly 4 times, nothing over it
        centres[value] = (rows.mean(), columns.mean())
    assert centres[10][0] == centres[60][0] == centres[90][0] < centres[120][0] == centres[150][0]
    assert centres[10][1] == centres[120][1] < centres[60][1] == centres[150][1] < centres[90][1]


def test_images_of_bytes_floats_grey_and_colour_agree(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (2, 8, 8), np.uint8)
    reference = read(figures.contact_sheet(grey, 2, tmp_path / "a.png"))
    for images in (grey[..., None] / 255, np.repeat(grey[..., None], 3, -1)):
        assert (read(figures.contact_sheet(images, 2, tmp_path / "b.png")) == reference).all()


def test_small_images_are_enlarged_and_wide_grids_bounded(tmp_path):
    assert read(figures.contact_sheet(flat([0.5], 32), 1, tmp_path / "a.png")).shape[0] > 128
    wide = figures.grid(np.zeros((1, 30, 64, 64, 3)), tmp_path / "b.png")
    assert read(wide).shape[1] < 2200


def test_grid_leaves_empty_cells_and_frames_highlights(tmp_path):
    (image,) = flat([100 / 255], 16)
    path = figures.grid(
        [[image, None], [image]],
        tmp_path / "grid.png",
        scale=2,
        highlight={(1, 0): "#ff0000"},
        separators=[1],
    )
    picture = read(path)
    assert squares(picture, 100) == 2 * 32 * 32  # the frame covers no pixel of the image
    red = (picture == (255, 0, 0)).all(-1)
    assert red.any() and np.nonzero(red)[0].min() > picture.shape[0] // 3


def test_labels_add_room_and_ink(tmp_path):
    images = flat([1.0] * 4)  # white on white: all ink is text
    plain = read(figures.contact_sheet(images, 2, tmp_path / "a.png"))
    assert (plain == 255).all()
    everything = {
        "labels": ["a", "b", "c", "d"],
        "row_labels": ["first", "a second row with a long name"],
        "column_labels": ["left", "right"],
        "title": "Title",
    }
    for key, value in everything.items():
        labelled = read(figures.contact_sheet(images, 2, tmp_path / "b.png", **{key: value}))
        assert labelled.min() < 120 and labelled.size > plain.size, key


@pytest.mark.parametrize(
    ("images", "keywords", "message"),
    [
        (flat([0.5, 9.0]), {}, r"must be in \[0, 1\], got 9 to 9"),
        (flat([-0.99]), {}, r"must be in \[0, 1\], got -0.99"),
        (flat([np.nan]), {}, r"must be in \[0, 1\], got nan"),
        (np.zeros((1, 8, 8, 4)), {}, r"got \(8, 8, 4\)"),
        ([flat([0.5])[0], flat([0.5], 4)[0]], {}, "images of one size"),
        ([], {}, "no images"),
        (flat([0.5]), {"labels": ["a", "b"]}, "2 labels for 1 images"),
        (flat([0.5]), {"row_labels": ["a", "b"]}, "2 row labels for 1 rows"),
        (flat([0.5]), {"column_labels": ["a"] * 3}, "3 column labels for 1 columns"),
    ],
)
def test_contact_sheet_refuses(tmp_path, images, keywords, message):
    with pytest.raises(ValueError, match=message):
        figures.contact_sheet(images, 2, tmp_path / "a.png", **keywords)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def drawn(monkeypatch):
    """What a figure's axes were given: name of the method -> calls."""
    calls = {}
    for name in ("plot", "fill_between", "axhline", "bar", "hist", "imshow", "text", "scatter"):
        original = getattr(Axes, name)

        def record(self, *args, _name=name, _original=original, **kwargs):
            calls.setdefault(_name, []).append((args, kwargs))
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(Axes, name, record)
    return calls


def test_curves(tmp_path, drawn):
    x = np.array([1.0, 10, 100])
    series = {"a": (x, x), "b": (x, x * 2, x, x * 3)}
    path = figures.curves(
        tmp_path / "deep" / "c.png", series, "x", "y", "T", logx=True, logy=True, hlines={"h": 5}
    )
    assert read(path).shape == (800, 1280, 3)
    assert len(drawn["fill_between"]) == 1 and drawn["axhline"][0][0] == (5,)
    np.testing.assert_array_equal(drawn["plot"][1][0][1], x * 2)
    with pytest.raises(ValueError, match="'a' needs 2 or 4 arrays of one length"):
        figures.curves(path, {"a": (x, x[:2])})
    with pytest.raises(ValueError, match="'a' needs 2 or 4"):
        figures.curves(path, {"a": (x, x, x)})


def test_bars_of_one_and_several_series(tmp_path, drawn):
    figures.bars(tmp_path / "a.png", ["p", "q"], [1, -2], [0.1, 0.2], "score", hlines={"zero": 0})
    figures.bars(tmp_path / "b.png", ["p", "q"], {"s": [1, 2], "t": [3, 4]}, {"s": [1, 1]})
    centres = [args[0] for args, _ in drawn["bar"]]
    np.testing.assert_allclose((centres[1] + centres[2]) / 2, [0, 1])
    assert read(tmp_path / "a.png").size and read(tmp_path / "b.png").size
    with pytest.raises(ValueError, match=r"shape \(3,\) for 2 names"):
        figures.bars(tmp_path / "c.png", ["p", "q"], [1, 2, 3])
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize("count", [3, 11])
def test_names_under_bars_do_not_overlap(tmp_path, monkeypatch, count):
    names = ["triangulated-2-D heat maps", "supervised, same network (true joints)", "mean pose",
             "hull centroid, moments, heights"] * 3  # fmt: skip
    boxes = []

    def measure(figure, *args, **kwargs):
        figure.canvas.draw()
        boxes.extend(label.get_window_extent() for label in figure.axes[0].get_xticklabels())
        return save(figure, *args, **kwargs)

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", measure)
    one = np.arange(count) + 1.0
    figures.bars(tmp_path / "a.png", names[:count], {"s": one, "t": one}, ylabel="error / mm")
    assert len(boxes) == count
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_histograms_share_bins_and_integrate_to_one(tmp_path, drawn):
    rng = np.random.default_rng(0)
    samples = {"a": rng.normal(size=300), "b": rng.normal(3, 1, 50)}
    figures.histograms(tmp_path / "h.png", samples, "x", vlines={"v": 1})
    edges = [args[1] for args, _ in drawn["hist"]]
    assert all(e == edges[0] for e in edges) and len(edges[0]) == 41
    assert edges[0][0] == min(map(np.min, samples.values()))
    assert all(kwargs["density"] for _, kwargs in drawn["hist"])


def test_heatmap_centres_signed_values_and_annotates_small_ones(tmp_path, drawn):
    figures.heatmap(tmp_path / "a.png", [[-1, 0.5], [np.nan, 3]], ["r", "s"], ["c", "a long name"])
    _, kwargs = drawn["imshow"][0]
    assert (kwargs["vmin"], kwargs["vmax"]) == (-3, 3)
    texts = {(args[0], args[1]): args[2] for args, _ in drawn["text"] if isinstance(args[0], int)}
    assert texts == {(0, 0): "−1.00", (1, 0): "0.50", (1, 1): "3.00"}
    drawn.clear()
    figures.heatmap(tmp_path / "n.png", [[-2, 1200], [np.nan, 3]])
    texts = {(args[0], args[1]): args[2] for args, _ in drawn["text"] if isinstance(args[0], int)}
    assert texts == {(0, 0): "−2", (1, 0): "1,200", (1, 1): "3"}
    cases = (([0.0089, 0.5], ["0.01", "0.50"]), ([0.002, 0.05], ["2.0e−03", "0.05"]))
    for values, expected in cases:
        drawn["text"].clear()
        figures.heatmap(tmp_path / "c.png", np.array([values]))
        assert [args[2] for args, _ in drawn["text"] if isinstance(args[0], int)] == expected
    drawn.clear()
    figures.heatmap(tmp_path / "b.png", np.ones((20, 20)), limits=(0, 2))
    assert not [1 for args, _ in drawn.get("text", []) if isinstance(args[0], int)]
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        figures.heatmap(tmp_path / "c.png", np.ones(3))


def test_scatter(tmp_path, drawn):
    points = np.random.default_rng(0).normal(size=(2, 300))
    figures.scatter(tmp_path / "s.png", {"a": tuple(points), "b": ([0], [1])}, diagonal=True)
    assert len(drawn["scatter"]) == 2 and read(tmp_path / "s.png").size


def test_figures_are_reproducible_and_leave_global_settings_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    series = {"a": ([1, 2], [3, 4])}
    first = figures.curves(tmp_path / "a.png", series).read_bytes()
    assert figures.curves(tmp_path / "b.png", series).read_bytes() == first
    assert dict(matplotlib.rcParams) == before
