"""Tests of the reader for TensorFlow.js weights."""

import json
import struct

import numpy as np
import pytest

from common import registry
from common.tfjs_reader import ManifestError, read_manifest


def write(folder, entries, data, shards=1):
    """Writes a manifest of one group whose bytes are cut into `shards` files."""
    cuts = [len(data) * i // shards for i in range(shards + 1)]
    names = [f"w.bin{i}" for i in range(shards)]
    for name, start, end in zip(names, cuts[:-1], cuts[1:], strict=True):
        (folder / name).write_bytes(data[start:end])
    path = folder / "w-weights_manifest.json"
    path.write_text(json.dumps([{"paths": names, "weights": entries}]))
    return path


def test_all_dtypes_across_shard_boundaries(tmp_path):
    entries = [
        {"name": "a", "shape": [2, 2], "dtype": "float32"},
        {"name": "b", "shape": [3], "dtype": "float32",
         "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1.0}},
        {"name": "c", "shape": [], "dtype": "float32",
         "quantization": {"dtype": "uint16", "scale": 2.0, "min": 1.0}},
        {"name": "d", "shape": [2], "dtype": "float32", "quantization": {"dtype": "float16"}},
        {"name": "e", "shape": [1], "dtype": "int32"},
        {"name": "f", "shape": [2], "dtype": "bool"},
        {"name": "g", "shape": [0, 3], "dtype": "float32"},
    ]
    data = (struct.pack("<4f", 1, 2, 3, 4) + bytes([0, 1, 255]) + struct.pack("<H", 1000)
            + struct.pack("<2e", 0.25, -2) + struct.pack("<i", -7) + bytes([1, 0]))
    tensors = read_manifest(write(tmp_path, entries, data, shards=3))
    assert list(tensors) == list("abcdefg")
    np.testing.assert_array_equal(tensors["a"], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(tensors["b"], [-1, -0.5, 126.5])
    np.testing.assert_array_equal(tensors["c"], 2001)
    np.testing.assert_array_equal(tensors["d"], [0.25, -2])
    np.testing.assert_array_equal(tensors["e"], [-7])
    np.testing.assert_array_equal(tensors["f"], [True, False])
    assert tensors["g"].shape == (0, 3)
    assert {str(tensors[name].dtype) for name in "abcd"} == {"float32"}


ONE = {"name": "a", "shape": [2], "dtype": "float32"}


@pytest.mark.parametrize(("entries", "size", "message"), [
    ([ONE], 4, r"'a' \[2\] ends at byte 8 but its shards hold 4"),
    ([ONE], 9, "describes 8 bytes but its shards hold 9"),
    ([ONE, ONE], 16, "'a' is listed twice"),
    ([{**ONE, "dtype": "string"}], 8, "unsupported dtype 'string'"),
    ([{**ONE, "quantization": {"dtype": "uint4"}}], 8, "unsupported dtype .* stored as 'uint4'"),
    ([{**ONE, "quantization": {"dtype": "uint8"}}], 2, "lacks quantization 'scale'"),
    ([{"name": "a"}], 0, "lacks name, shape or dtype"),
])
def test_damaged_manifests_are_refused(tmp_path, entries, size, message):
    path = write(tmp_path, entries, bytes(size))
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_missing_shard_and_foreign_paths(tmp_path):
    path = write(tmp_path, [ONE], bytes(8))
    (tmp_path / "w.bin0").unlink()
    with pytest.raises(FileNotFoundError):
        read_manifest(path)
    path.write_text(json.dumps([{"paths": ["../w.bin"], "weights": []}]))
    with pytest.raises(ManifestError, match="not a plain file name"):
        read_manifest(path)
    path.write_text("{")
    with pytest.raises(ManifestError, match="not a JSON manifest"):
        read_manifest(path)


def test_real_weights_read_by_hand():
    folder = registry.fetch("face-api")
    path = folder / "face_recognition_model-weights_manifest.json"
    tensors = read_manifest(path)
    group = json.loads(path.read_text())[0]
    raw = (folder / "face_recognition_model.bin").read_bytes()
    # The last tensor is uint8-quantised and ends the file.
    last = group["weights"][-1]
    assert last["name"] == "fc"
    quantised = np.frombuffer(raw[-256 * 128:], np.uint8).reshape(256, 128)
    expected = quantised * last["quantization"]["scale"] + last["quantization"]["min"]
    np.testing.assert_allclose(tensors["fc"], expected, rtol=1e-6)
    assert len(tensors) == 117 and sum(x.size for x in tensors.values()) == 5_614_592
