"""The original's release: files of its structure at small size, written by torch.

The release was pickled by a pandas before 3, whose names are others today, see `old_pandas`.
"""

import os
import sys

import numpy as np
import pytest
import torch

from tests.common import old_pandas
from tests.common.old_pandas import Block, BlockManager, DataFrame, Index
from w2w import subspace
from w2w.adapters import planted
from w2w.bank import Bank, hub_release
from w2w.bank.hub_release import ReleaseError

LAYOUT = planted.layout()
N, K, D = 40, 6, LAYOUT.size
COLUMNS = ("Male", "Young", "Score")


@pytest.fixture
def pandas_names(monkeypatch):
    old_pandas.install(monkeypatch)


def names_of(count):
    return [f"celeba{i:03d}" for i in range(count)]


def frame_of(names, integers, floats):
    """Columns 0 and 1 of whole numbers ``[2, N]``, column 2 of fractions ``[1, N]``."""
    blocks = (
        Block(np.asfortranarray(integers), slice(0, 2, 1)),
        Block(floats, np.array([2])),
    )
    axes = [Index(np.array(COLUMNS, object)), Index(np.array(names, object))]
    return DataFrame(BlockManager(blocks, axes))


@pytest.fixture
def release(tmp_path, pandas_names):
    """A folder as on the hub, and what is in it."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(N, D)).astype(np.float32)
    mean, std = weights.mean(0), weights.std(0, ddof=1)
    std[::7] *= -1  # as published
    v = np.linalg.svd((weights - mean) / std, full_matrices=False)[2][: 2 * K].T
    coefficients = ((weights - mean) / std) @ v
    labels = rng.choice([-1, 1], size=(2, N))
    scores = rng.normal(size=(1, N))
    files, data = tmp_path / "files", tmp_path / "weights_datasets" / "identities"
    files.mkdir(), data.mkdir(parents=True)
    dimensions = {
        name: ((rows * columns,), torch.Size((rows, columns)))
        for name, (rows, columns) in zip(LAYOUT.names, LAYOUT.shapes, strict=True)
    }
    for path, value in {
        files / "V.pt": torch.tensor(np.ascontiguousarray(v)),
        files / "mean.pt": torch.tensor(mean),
        files / "std.pt": torch.tensor(std),
        files / "proj_1000pc.pt": torch.tensor(np.ascontiguousarray(coefficients[:, :K])),
        files / "weight_dimensions.pt": dimensions,
        data / "all_weights.pt": torch.tensor(weights),
        data / "identity_df.pt": frame_of(names_of(N), labels, scores),
    }.items():
        torch.save(value, path)
    config = '{"peft_type": "LORA", "r": 1, "lora_alpha": 27, "target_modules": ["to_q", "to_v"]}'
    (files / "adapter_config.json").write_text(config)
    return tmp_path, weights, coefficients, np.concatenate([labels, scores])


def test_layout_and_alpha(release):
    folder, *_ = release
    layout = hub_release.read_layout(folder)
    assert layout == LAYOUT and layout.sha256 == LAYOUT.sha256
    assert hub_release.read_alpha(folder, layout) == 27


@pytest.mark.parametrize(
    "spelling",
    [
        lambda key: (
            "lora_unet_"
            + key.removeprefix("base_model.model.")
            .replace(".lora_A.weight", "|lora_down.weight")
            .replace(".lora_B.weight", "|lora_up.weight")
            .replace(".", "_")
            .replace("|", ".")
            .replace("_weight", ".weight")
        ),
        lambda key: key.replace(".weight", ".identity1.weight"),
        lambda key: key.removeprefix("base_model.model."),
    ],
)
def test_other_spellings_of_the_dimensions(tmp_path, spelling):
    """The published spelling is not documented; every known one gives the layout."""
    table = {
        spelling(name): ((a * b,), torch.Size((a, b)))
        for name, (a, b) in zip(LAYOUT.names, LAYOUT.shapes, strict=True)
    }
    torch.save(table, tmp_path / "weight_dimensions.pt")
    assert hub_release.read_layout(tmp_path) == LAYOUT
    torch.save(dict(reversed(table.items())), tmp_path / "weight_dimensions.pt")
    with pytest.raises(ReleaseError, match="entry 0 is .* in the order of PEFT keys it is"):
        hub_release.read_layout(tmp_path)


def test_the_space_projects_and_unprojects(release):
    """Published coefficients give back the weights' projection, with negative deviations."""
    folder, weights, coefficients, _ = release
    space = hub_release.read_space(folder)
    assert (space.k, space.n) == (K, N) and float(space.std.min()) < 0
    np.testing.assert_allclose(subspace.project(space, weights), coefficients[:, :K], atol=2e-5)
    np.testing.assert_allclose(space.variances, coefficients[:, :K].var(0, ddof=1), rtol=1e-4)
    few = hub_release.read_space(folder, 2)
    np.testing.assert_array_equal(few.components, space.components[:2])
    mapped = hub_release.read_coefficients(folder)
    assert not mapped.flags.writeable and not mapped.flags.owndata  # not read into memory

    with pytest.raises(ReleaseError, match=f"variances of {2 * K} components.* has {K}"):
        hub_release.read_space(folder, 2 * K)
    variances = hub_release.coefficient_variances(folder, 2 * K, chunk=7)
    np.testing.assert_allclose(variances, coefficients.var(0, ddof=1), rtol=1e-4)
    assert hub_release.read_space(folder, 2 * K, variances).k == 2 * K


def test_labels_without_pandas(release, monkeypatch):
    folder, *_, table = release
    for name in [name for name in sys.modules if name.split(".")[0] == "pandas"]:
        monkeypatch.delitem(sys.modules, name)
    names, attributes = hub_release.read_labels(folder)
    assert list(names) == names_of(N) and tuple(attributes) == COLUMNS
    np.testing.assert_array_equal([attributes[name] for name in COLUMNS], table)


def test_the_bank_of_the_release(release, monkeypatch):
    folder, weights, _, table = release
    bank = Bank.create(folder / "bank", LAYOUT, 27.0, labels=("Male", "Score"))
    monkeypatch.setattr(Bank, "append", stops_after(Bank.append, 2))
    with pytest.raises(KeyboardInterrupt):
        hub_release.import_weights(folder, bank, chunk=16)
    monkeypatch.undo()
    bank = Bank(bank.path)
    assert len(bank) == 32
    hub_release.import_weights(folder, bank, chunk=16)
    assert list(bank.names) == names_of(N)
    np.testing.assert_array_equal(bank.rows, weights)
    np.testing.assert_array_equal(bank.labels.T, table[[0, 2]])
    other = Bank.create(folder / "other", LAYOUT, 13.0)
    with pytest.raises(ReleaseError, match="alpha 13, the release has .* 27"):
        hub_release.import_weights(folder, other)


def stops_after(append, calls):
    left = [calls]

    def limited(*args, **kwargs):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        append(*args, **kwargs)

    return limited


class Evil:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("identity_df.pt", hub_release.read_labels),
        ("V.pt", hub_release.read_space),
        ("weight_dimensions.pt", hub_release.read_layout),
    ],
)
def test_malicious_files_are_refused(release, name, read):
    folder, *_ = release
    witness = folder / "executed"
    path = hub_release.find(folder, name)
    torch.save({"key": Evil(witness)}, path)
    with pytest.raises(ReleaseError, match=f"{name}: .*system.*nothing was executed"):
        read(folder)
    assert not witness.exists()
    torch.load(path, weights_only=False)  # the control: torch does execute it
    assert witness.exists()


def test_files_that_do_not_fit(release):
    folder, weights, *_ = release
    files = folder / "files"
    torch.save(torch.ones(D - 1), files / "mean.pt")
    with pytest.raises(ReleaseError, match=rf"mean.pt: float32 \({D - 1},\), expected .* \({D}\)"):
        hub_release.read_space(folder)
    torch.save(torch.ones(D, 2 * K), files / "V.pt")
    with pytest.raises(ReleaseError, match=f"component 0 has norm {D**0.5:.2f}"):
        hub_release.read_space(folder)
    (files / "V.pt").write_bytes((files / "V.pt").read_bytes()[:1000])
    with pytest.raises(ReleaseError, match="V.pt: damaged file"):
        hub_release.read_space(folder)
    (files / "V.pt").unlink()
    with pytest.raises(ReleaseError, match="no V.pt in"):
        hub_release.read_space(folder)
    reordered = frame_of(names_of(N)[::-1], np.ones((2, N), int), np.ones((1, N)))
    torch.save(reordered, hub_release.find(folder, "identity_df.pt"))
    bank = Bank.create(folder / "bank", LAYOUT, 27.0)
    with pytest.raises(ReleaseError, match="not in alphanumeric order"):
        hub_release.import_weights(folder, bank)
    assert len(bank) == 0
