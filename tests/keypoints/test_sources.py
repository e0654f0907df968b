"""Videos and image folders as they are read: order, damage, missing decoders."""

import sys

import numpy as np
import pytest
from PIL import Image

from keypoints import sources
from keypoints.sources import RecordingError, Source

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is in the extra `test`")


def video(path, frames=6, size=(64, 48), rate=20.0):
    """Frames of one grey value each, 20 apart, the blue channel darker."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    for index in range(frames):
        frame = np.full((size[1], size[0], 3), 40 + 20 * index, np.uint8)
        frame[..., 0] = 10  # OpenCV's first channel is blue
        writer.write(frame)
    writer.release()
    return path


def test_images_come_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "view"
    folder.mkdir()
    for index in (10, 9, 1, 100):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(folder / f"frame{index}.png")
    found = [int(frame[0, 0, 0]) for frame in Source(folder).frames()]
    assert found == [1, 9, 10, 100]


@pytest.mark.parametrize("stride", [1, 4])
def test_a_video_is_read_in_rgb_with_its_stride(tmp_path, stride):
    source = Source(video(tmp_path / "a.mp4"))
    assert (source.count, source.size, source.rate) == (6, (64, 48), 20.0)
    found = list(source.frames(stride))
    assert len(found) == len(range(0, 6, stride))
    for index, frame in zip(range(0, 6, stride), found, strict=True):
        assert frame.shape == (48, 64, 3)
        red, _, blue = frame.reshape(-1, 3).mean(axis=0)
        assert abs(red - (40 + 20 * index)) < 6 and blue < 25


def test_videos_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "b.mp4").write_bytes(b"not a video")
    with pytest.raises(RecordingError, match=r"b\.mp4 cannot be opened as a video"):
        Source(tmp_path / "b.mp4")
    source = Source(video(tmp_path / "c.mp4"))
    source.count = 12  # as a header may say
    for stride in (1, 5):
        with pytest.raises(RecordingError, match=r"c\.mp4: frame 6 of 12 cannot be read"):
            list(source.frames(stride))
    source.size = (48, 64)
    with pytest.raises(RecordingError, match="frame 0 has 64 x 48 pixels.*48 x 64"):
        next(source.frames())


def test_without_opencv_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(RecordingError, match="videos need OpenCV; install the extra `keypoints`"):
        Source(tmp_path / "a.mp4")


def test_an_empty_folder_and_two_sources_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(RecordingError, match="a has no images"):
        sources.find_sources(tmp_path, ("a",))
    video(tmp_path / "a.mp4")
    with pytest.raises(RecordingError, match="two sources for camera a"):
        sources.find_sources(tmp_path, ("a",))
    with pytest.raises(RecordingError, match="there is no folder"):
        sources.find_sources(tmp_path / "none", ("a",))
