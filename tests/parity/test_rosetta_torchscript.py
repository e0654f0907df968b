"""TorchScript archives, the form of OpenAI's file of CLIP, read without running them."""

import pickle
import zipfile

import jax
import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from common.nets import clip_resnet
from common.restricted_pickle import PickleError, RefusedGlobal
from rosetta.zoo import checkpoints, torchscript

pytestmark = pytest.mark.parity


class Model(torch.nn.Module):
    """As CLIP's: the image tower, tensors of its own and a buffer of the text tower."""

    def __init__(self):
        super().__init__()
        self.visual = ModifiedResNet([1, 1, 1, 1], 16, 4, image_size=32, width=8)
        self.logit_scale = torch.nn.Parameter(torch.ones([]))
        self.register_buffer("input_resolution", torch.tensor(32))
        self.sizes = [32, 8]

    def forward(self, x):
        return self.logit_scale * self.visual(x)


# torch.jit is deprecated where Python is new; the archives stay.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_tower_of_an_archive(tmp_path):
    torch.manual_seed(0)
    model = Model().eval().half()  # as published
    path = tmp_path / "RN50.pt"
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.zeros(1, 3, 32, 32).half(), check_trace=False)
    torch.jit.save(traced, path)
    found = checkpoints.read_tensors(path)
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert set(found) == set(expected) and found["visual.conv1.weight"].dtype == np.float16
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    module = clip_resnet.ClipResNet((1, 1, 1, 1), 8, 16, 32)
    variables = clip_resnet.from_tensors(module, found)
    kernel = variables["params"]["conv1"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, expected["visual.conv1.weight"].transpose(2, 3, 1, 0))


class Evil:
    def __reduce__(self):
        return eval, ("1 / 0",)


def test_other_archives_are_refused(tmp_path):
    def archive(content, *more):
        path = tmp_path / "a.pt"
        with zipfile.ZipFile(path, "w") as opened:
            opened.writestr("a/constants.pkl", b"")
            for name, data in (("a/data.pkl", content), *more):
                opened.writestr(name, data)
        return path

    path = archive(pickle.dumps(Evil()))
    assert torchscript.is_archive(path)
    with pytest.raises(RefusedGlobal, match="a.pt: refused: the pickle asks for 'builtins.eval'"):
        checkpoints.read_tensors(path)
    with pytest.raises(PickleError, match="a.pt: no module, but dict"):
        checkpoints.read_tensors(archive(pickle.dumps({"a": 1})))
    path = archive(b"")
    path.write_bytes(path.read_bytes().replace(b"data.pkl", b"date.pkl"))
    with pytest.raises(PickleError, match="a.pt: damaged file: KeyError"):
        checkpoints.read_tensors(path)
    other = tmp_path / "b.pt"
    torch.save({"a": torch.ones(2)}, other)
    assert not torchscript.is_archive(other)
