"""The split by person, the frames, and the captions."""

from types import SimpleNamespace

import numpy as np
import pytest

from w2w import build, data


def test_split_is_by_person_and_disjoint():
    parts = [set(data.TEST_PEOPLE), set(data.VALIDATION_PEOPLE), set(data.TRAINING_PEOPLE)]
    assert [len(p) for p in parts] == [10, 5, 25]
    assert set.union(*parts) == set(range(40))
    chosen = build.space_identities(300)
    assert len(set(chosen.tolist())) == 300
    assert not set(chosen.tolist()) & (parts[0] | parts[1])
    assert data.training_identities(chosen).all()


def test_smaller_populations_hold_all_real_sets_first():
    olivetti = [i for i in build.space_identities(60).tolist() if i < data.FIRST_CELEBA]
    assert sorted(olivetti) == sorted(data.TRAINING_PEOPLE)
    with pytest.raises(ValueError, match="2000 models asked for, 1024"):
        build.space_identities(2000)


def test_fewer_people(monkeypatch):
    chosen = build.space_identities(9, celeba=4, olivetti=10)
    assert {0, 2, 4, 6, 7, 8} < set(chosen.tolist())  # 1, 5, 9 and 3 are held out
    assert sum(data.FIRST_CELEBA <= i < data.FIRST_CELEBA + 4 for i in chosen) == 3
    with pytest.raises(ValueError, match="11 models asked for, 10"):
        build.space_identities(11, celeba=4, olivetti=10)
    images = np.arange(6 * 64 * 64, dtype=np.uint32).reshape(6, 64, 64).astype(np.uint8)
    known = SimpleNamespace(images=images, person=np.repeat([0, 1, 2], 2))
    monkeypatch.setattr(data.datasets, "olivetti", lambda: known)
    monkeypatch.setattr(
        data.datasets, "celeba_photos", lambda: np.zeros((5, 218, 178, 3), np.uint8)
    )
    found = data.Photographs(celeba=1, olivetti=2)
    np.testing.assert_array_equal(found.identity, [0, 0, 1, 1, data.FIRST_CELEBA])
    np.testing.assert_array_equal(found.frame(3), images[3])


def test_frame_without_jitter_is_the_box():
    photo = np.arange(40 * 40, dtype=np.uint32).reshape(40, 40) % 251
    photo = photo.astype(np.uint8)
    np.testing.assert_array_equal(data.framed(photo, (4.0, 6.0, 20.0, 22.0), 16), photo[6:22, 4:20])


def test_jitter_is_deterministic_and_small():
    rng = np.random.default_rng(0)
    photo = np.kron(rng.integers(60, 190, (8, 8)), np.ones((8, 8))).astype(np.uint8)
    box = (8.0, 8.0, 56.0, 56.0)
    a, b = (data.framed(photo, box, 48, data.Jitter(), np.random.default_rng(s)) for s in (1, 1))
    np.testing.assert_array_equal(a, b)
    none = data.Jitter(0, 0, 0, 0, 0, 0)
    plain = data.framed(photo, box, 48).astype(int)
    still = data.framed(photo, box, 48, none, rng).astype(int)
    assert np.abs(still - plain).mean() < 1
    with pytest.raises(ValueError, match="random generator"):
        data.framed(photo, box, 48, data.Jitter())


def test_captions_use_only_known_words():
    rng = np.random.default_rng(0)
    words = set(data.base_words())
    captions = [data.caption(("old", "man", "smiling"), "name1005", rng) for _ in range(500)]
    assert all(word in words for caption in captions for word in caption.split())
    share = np.mean([caption == "" for caption in captions])
    assert 0.05 < share < 0.16
    assert 0.4 < np.mean(["name1005" in caption for caption in captions]) < 0.7
    assert max(len(caption.split()) for caption in captions) <= 6


def test_description_is_silent_where_unsure():
    flat = np.full(7, 1 / 7)
    assert data.describe(20.0, 0.5, flat) == ("young", "person", "")
    sure = np.eye(7)[1]
    assert data.describe(60.0, 0.95, sure) == ("old", "man", "smiling")
