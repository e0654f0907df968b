"""The HTML report: well formed, self-contained, escaped, honest about its numbers."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from common.report import Report, publish

VOID = {"meta", "img", "br", "link", "hr"}


class Outline(HTMLParser):
    """Checks that tags are balanced and collects tags, attributes and texts."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append((self.open[-1], data))

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def inside(self, tag):
        return [text for name, text in self.texts if name == tag]


@pytest.fixture
def picture(tmp_path):
    pixels = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def build(picture, tmp_path):
    report = Report("A <title>", "made by `launch.py` & co")
    report.section("First", "One **bold** line with `a < b`.\n\nA second paragraph.")
    report.figure(picture, 'A "picture"').note("Mind this.")
    report.section("Second").table(
        ["name", "score", "pair", "count"],
        [["x<y", 0.12345, (0.5, 0.01), 1200], ["z", None, (-12.3, 1.0), 3]],
        caption="All numbers.",
    )
    report.section("Third").text("End.")
    path = report.write(tmp_path / "out" / "report.html")
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_needs_no_network(picture, tmp_path):
    page = build(picture, tmp_path)
    outline = Outline(page)
    assert page.startswith("<!doctype html>")
    assert outline.inside("h1") == ["A <title>"]  # escaped in the source, so the parser sees text
    assert outline.inside("h2") == ["First", "Second", "Third"]
    assert outline.inside("strong") == ["bold"] and "a < b" in outline.inside("code")
    assert "A second paragraph." in outline.inside("p")
    assert not {"script", "link", "iframe"} & {tag for tag, _ in outline.tags}
    assert not re.search(r"https?:|url\(|@import", page)
    targets = [attributes["href"] for attributes in outline.attributes("a")]
    assert targets == [f"#{attributes['id']}" for attributes in outline.attributes("h2")]


def test_images_are_embedded_unchanged(picture, tmp_path):
    (image,) = Outline(build(picture, tmp_path)).attributes("img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == picture.read_bytes()
    assert (image["width"], image["height"], image["alt"]) == ("60", "40", 'A "picture"')


def test_dense_figures_are_shown_smaller(tmp_path):
    Image.new("RGB", (400, 200)).save(tmp_path / "dense.png", dpi=(200, 200))
    page = Report("t").figure(tmp_path / "dense.png").write(tmp_path / "r.html").read_text()
    (image,) = Outline(page).attributes("img")
    assert (image["width"], image["height"]) == ("240", "120")


def test_table_cells(picture, tmp_path):
    outline = Outline(build(picture, tmp_path))
    assert outline.inside("td") == [
        *["x<y", "0.123", "0.500 ± 0.010", "1,200"],
        *["z", "–", "−12.30 ± 1.00", "3"],
    ]
    kinds = [attributes.get("class") for attributes in outline.attributes("th")]
    assert kinds == [None, "number", "number", "number"]
    assert outline.inside("caption") == ["All numbers."]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (np.float32(0.25), "0.250"),
        (np.int64(7), "7"),
        (-0.5, "−0.500"),
        (3.14159, "3.14"),
        (412.34, "412.3"),
        (12345.6, "12,346"),
        (2e-5, "2.00e−05"),
        (float("nan"), "nan"),
        (True, "yes"),
        (99_648, "99,648"),
    ],
)
def test_numbers(tmp_path, value, text):
    page = Report("t").table(["v"], [[value]]).write(tmp_path / "r.html").read_text("utf-8")
    assert Outline(page).inside("td") == [text]


def test_what_cannot_be_shown_is_refused(tmp_path):
    report = Report("t")
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        report.table(["a", "b"], [["x"]])
    with pytest.raises(FileNotFoundError):
        report.figure(tmp_path / "none.png")
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="x.npz"):
        report.figure(tmp_path / "x.npz")


def test_what_is_published(tmp_path):
    for name in ("report/report.html", "report/a.png", "report/stage.json", "measure/results.json",
                 "draw/b.png"):
        path = tmp_path / "stages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    page = publish(tmp_path, "measure/results.json", stages=("draw", "report"))
    assert page == tmp_path / "report.html"
    found = {p.name: p.read_text() for p in tmp_path.iterdir() if p.is_file()}
    assert found == {"report.html": "report/report.html", "a.png": "report/a.png",
                     "b.png": "draw/b.png", "results.json": "measure/results.json"}
    with pytest.raises(FileNotFoundError):
        publish(tmp_path, "measure/missing.csv")
