"""Photographs and masks: one frame for both, and one clear error for each kind of bad folder."""

import numpy as np
import pytest
from PIL import Image

from w2w.adapters import photographs
from w2w.adapters.photographs import Frame, PhotographError

SIZE, FACTOR = (64, 64), 8


def spot(width=150, height=90):
    """A picture that is black but for a white rectangle, and the mask of the rectangle."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[20:70, 60:110] = 255
    return Image.fromarray(pixels).convert("RGB"), Image.fromarray(pixels)


def saved(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def frames(zoom=0.6, mirror=True, count=12, picture=(150, 90), size=SIZE, seed=0):
    return photographs.draw_frames(
        picture, size, count, zoom, mirror, np.random.SeedSequence(seed)
    )


def centre(values):
    """Centre of mass (row, column) in shares of the picture."""
    rows, columns = (np.arange(n) + 0.5 for n in values.shape)
    total = values.sum()
    return np.array([values.sum(1) @ rows / total / len(rows),
                     values.sum(0) @ columns / total / len(columns)])


def test_image_and_mask_are_framed_alike(tmp_path):
    """At latent size the mask is the image's rectangle, for every crop, size and mirroring."""
    image, mask = spot()
    image = photographs.read_image(saved(tmp_path / "a.png", image))
    mask = photographs.read_mask(saved(tmp_path / "mask.png", mask), image)
    latent = SIZE[0] // FACTOR, SIZE[1] // FACTOR
    parted = []
    for frame in frames():
        pixels = photographs.apply_frame(image, frame, SIZE)[..., 0] / 255
        weights = photographs.apply_frame(mask, frame, latent)
        pooled = pixels.reshape(latent[0], FACTOR, latent[1], FACTOR).mean(axis=(1, 3))
        # Away from the rectangle's edge, which the two sizes blur differently, they are equal.
        whole = (pooled < 1e-3) | (pooled > 0.999)
        assert np.abs(weights - pooled).max() < 0.35
        assert np.mean(whole) > 0.25 and np.abs(weights - pooled)[whole].mean() < 0.05
        assert np.abs(centre(weights) - centre(pooled)).max() < 0.02
        # The original's way, the whole mask squashed to the latents' square, is another place.
        squashed = photographs.apply_frame(mask, Frame((0, 0, 1, 1), False), latent)
        parted.append(np.abs(centre(squashed) - centre(pooled)).max())
    assert np.median(parted) > 0.04
    assert {frame.mirrored for frame in frames()} == {True, False}


def test_frames_have_the_proportions_of_the_model_and_stay_inside():
    for picture in ((150, 90), (90, 150), (64, 64)):
        for size in ((64, 64), (64, 32)):
            for frame in frames(picture=picture, size=size):
                left, top, right, bottom = frame.box
                assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
                w, h = (right - left) * picture[0], (bottom - top) * picture[1]
                assert w * size[0] == pytest.approx(h * size[1], rel=1e-6)
                largest = min(picture[0] / size[1], picture[1] / size[0])
                assert 0.6 - 1e-9 <= w / size[1] / largest <= 1 + 1e-9
    assert frames() == frames() and frames() != frames(seed=1)


def test_a_square_picture_is_seen_whole_and_once():
    (frame,) = frames(zoom=1.0, mirror=False, picture=(80, 80))
    assert frame == Frame((0.0, 0.0, 1.0, 1.0), False)
    assert len(frames(zoom=1.0, mirror=True, picture=(80, 80))) == 2
    assert len(frames(zoom=1.0, mirror=False)) == 12  # as the original's random crop
    for bad in (dict(zoom=0.0), dict(zoom=1.5), dict(count=0)):
        with pytest.raises(ValueError, match="zoom"):
            frames(**bad)


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB"])
def test_white_is_one_in_masks_of_all_depths(tmp_path, mode):
    values = np.zeros((8, 8), bool)
    values[:, 4:] = True
    if mode == "I;16":
        picture = Image.fromarray(np.where(values, 65535, 0).astype(np.uint16))
    else:
        picture = Image.fromarray(np.where(values, 255, 0).astype(np.uint8)).convert(mode)
    path = saved(tmp_path / "mask.png", picture)
    found = photographs.read_mask(path, Image.new("RGB", (16, 16)))
    np.testing.assert_array_equal(np.asarray(found), values.astype(np.float32))


def test_people_are_folders_or_one_folder(tmp_path):
    image, mask = spot()
    for name in ("anna/1.png", "anna/2.jpg", "bert/x.PNG"):
        saved(tmp_path / "photographs" / name, image, format="PNG")
    for name in ("anna/1.png", "anna/2.png", "bert/x.png"):
        saved(tmp_path / "masks" / name, mask)
    anna, bert = photographs.find(tmp_path / "photographs", tmp_path / "masks")
    assert (anna.name, bert.name) == ("anna", "bert")
    assert [path.name for path in anna.images] == ["1.png", "2.jpg"]
    assert [path.name for path in anna.masks] == ["1.png", "2.png"]
    (alone,) = photographs.find(tmp_path / "photographs" / "anna")
    assert (alone.name, alone.images, alone.masks) == ("anna", anna.images, ())
    (alone,) = photographs.find(tmp_path / "photographs" / "bert", tmp_path / "masks" / "bert")
    assert alone == bert
    before = photographs.digest([anna, bert])
    saved(tmp_path / "masks" / "bert" / "x.png", image)
    assert photographs.digest([anna, bert]) != before


def test_links_to_people_and_pictures(tmp_path):
    """A folder of links to folders is a folder of people; one that leads nowhere is named."""
    image, mask = spot()
    saved(tmp_path / "album" / "x1" / "1.png", image)
    saved(tmp_path / "album" / "x2" / "1.png", image)
    saved(tmp_path / "masked" / "1.png", mask)
    for kind, names in (("photographs", ("x1", "x2")), ("masks", ("masked", "masked"))):
        (tmp_path / kind).mkdir()
        for person, name in zip(("anna", "bert"), names, strict=True):
            place = tmp_path / "album" / name if kind == "photographs" else tmp_path / name
            (tmp_path / kind / person).symlink_to(place)
    people = photographs.find(tmp_path / "photographs", tmp_path / "masks")
    assert [person.name for person in people] == ["anna", "bert"]
    assert people[0].images == (tmp_path / "photographs" / "anna" / "1.png",)
    (tmp_path / "album" / "x1" / "2.png").symlink_to("1.png")
    (tmp_path / "album" / "x1" / "again.png").symlink_to("gone.png")
    with pytest.raises(PhotographError, match=r"anna/again.png is a link to gone.png, which"):
        photographs.find(tmp_path / "photographs")
    (tmp_path / "album" / "x1" / "again.png").unlink()
    assert len(photographs.find(tmp_path / "photographs")[0].images) == 2
    (tmp_path / "photographs" / "carl").symlink_to(tmp_path / "nobody")
    with pytest.raises(PhotographError, match=r"carl is a link to .*nobody, which is not there"):
        photographs.find(tmp_path / "photographs")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    saved(tmp_path / "p" / "anna" / "1.png", spot()[0])

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(photographs.pathlib.Path, "iterdir", closed)
    with pytest.raises(PhotographError, match="p cannot be read: Permission denied"):
        photographs.find(tmp_path / "p")


def folder(tmp_path, *names):
    for name in names:
        saved(tmp_path / name, spot()[0])
    return tmp_path


@pytest.mark.parametrize(
    ("make", "masks", "message"),
    [
        (lambda t: t / "nowhere", "", "nowhere is not a folder of photographs"),
        (lambda t: t, "", "no photographs"),
        (lambda t: folder(t, "p/a/1.png", "p/2.png") / "p", "", "files as well as sub-folders"),
        (lambda t: folder(t, "p/1.png", "p/1.jpg") / "p", "", "have one name"),
        (lambda t: folder(t, "p/1.png") / "p", "nowhere", "is not a folder of masks"),
        (lambda t: folder(t, "p/1.png", "p/2.png", "m/1.png") / "p", "m",
         "1 masks for 2 photographs of p: none for 2"),
        (lambda t: folder(t, "p/1.png", "m/1.png", "m/3.png") / "p", "m",
         "2 masks for 1 photographs of p: no photograph for 3"),
        (lambda t: folder(t, "p/a/1.png", "p/b/1.png", "m/a/1.png", "m/c/1.png") / "p", "m",
         "only one of the two has b, c"),
    ],
)
def test_bad_folders(tmp_path, make, masks, message):
    place = make(tmp_path)
    with pytest.raises(PhotographError, match=message):
        photographs.find(place, tmp_path / masks if masks else "")


def test_bad_files(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(PhotographError, match=r"notes.txt is not a picture"):
        photographs.find(tmp_path)
    (tmp_path / "half.png").write_bytes(saved(tmp_path / "a.png", spot()[0]).read_bytes()[:100])
    with pytest.raises(PhotographError, match=r"half.png cannot be read"):
        photographs.read_image(tmp_path / "half.png")
    image = photographs.read_image(tmp_path / "a.png")
    tall = saved(tmp_path / "tall.png", Image.new("L", (90, 150), 255))
    with pytest.raises(PhotographError, match="90 x 150 pixels for a photograph of 150 x 90"):
        photographs.read_mask(tall, image)
    black = saved(tmp_path / "black.png", Image.new("L", (150, 90)))
    with pytest.raises(PhotographError, match="black everywhere"):
        photographs.read_mask(black, image)
    half = saved(tmp_path / "small.png", Image.new("L", (75, 45), 255))
    assert photographs.read_mask(half, image).size == (75, 45)


def test_photographs_are_turned_as_their_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = saved(tmp_path / "a.jpg", spot()[0], exif=exif)
    assert photographs.read_image(path).size == (90, 150)
