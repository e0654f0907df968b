"""Tests of the metrics writer."""

import jax
import numpy as np
import pytest

from common.writer import Writer, read_jsonl


@pytest.fixture
def make_writer(tmp_path):
    writers = []

    def make(folder=tmp_path):
        writers.append(Writer(folder))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


def _steps(path, phase):
    return [r["step"] for r in read_jsonl(path / "metrics.jsonl") if r["phase"] == phase]


def test_records_and_population_means(tmp_path, make_writer):
    writer = make_writer()
    writer.scalars(3, {"loss": np.array([1.0, 3.0]), "nan": np.float32("nan")})
    writer.begin("train")
    writer.scalars(4, {"loss": jax.numpy.float32(0.5)})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 3, "loss": 2.0, "nan": "nan"},
        {"phase": "train", "step": 4, "loss": 0.5},
    ]


def test_resume_drops_the_steps_that_are_computed_again(tmp_path, make_writer):
    writer = make_writer()
    for phase, count in (("base", 3), ("train", 6)):
        writer.begin(phase)
        for step in range(count):
            writer.scalars(step, {"loss": step})
    writer.close()
    again = make_writer()
    again.begin("train", 4)
    again.scalars(4, {"loss": 40})
    assert _steps(tmp_path, "base") == [0, 1, 2]  # another phase is left alone
    assert _steps(tmp_path, "train") == [0, 1, 2, 3, 4]
    assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["loss"] == 40


def test_line_cut_short_by_a_kill(tmp_path, make_writer):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"phase": "train", "step": 0, "loss": 1.0}\n{"phase": "tr')
    assert [record["step"] for record in read_jsonl(path)] == [0]
    writer = make_writer()
    writer.begin("train", 1)
    writer.scalars(1, {"loss": 2.0})
    assert _steps(tmp_path, "train") == [0, 1]


def test_damage_elsewhere_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is not JSON"):
        read_jsonl(path)


def test_images(tmp_path, make_writer):
    writer = make_writer()
    writer.image(0, "faces", np.full((8, 8, 1), 0.5, np.float32))
    assert list((tmp_path / "tensorboard").iterdir())
    with pytest.raises(ValueError, match=r"image 'faces'.*\(8, 8\)"):
        writer.image(0, "faces", np.zeros((8, 8)))


def test_other_processes_write_nothing(tmp_path, make_writer, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = make_writer(tmp_path / "run")
    writer.begin("train")
    writer.scalars(0, {"loss": 1.0})
    writer.image(0, "faces", np.zeros((8, 8, 3)))
    assert not (tmp_path / "run").exists()
