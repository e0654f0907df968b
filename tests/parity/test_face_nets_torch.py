"""The face networks with their real weights against forward passes written in torch."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common import datasets, registry, tfjs_reader
from common.nets import age_gender, expression, face_images, face_recogniser

pytestmark = pytest.mark.parity


def tensors(name):
    """Raw tensors as torch's: kernels HWIO -> OIHW, depthwise [h, w, c, 1] -> [c, 1, h, w]."""
    path = registry.fetch("face-api") / f"{name}_model-weights_manifest.json"
    result = {}
    for key, value in tfjs_reader.read_manifest(path).items():
        if value.ndim == 4:
            order = (2, 3, 0, 1) if "depthwise" in key else (3, 2, 0, 1)
            value = value.transpose(order)
        result[key] = torch.from_numpy(np.array(value, order="C"))
    return result


def images(size):
    """Prepared inputs of real faces and of colour noise, in both layouts."""
    random = np.random.default_rng(0)
    faces = datasets.olivetti().images[[3, 77]].astype(np.float32)[..., None] / 255
    colour = random.uniform(size=(2, 64, 64, 3)).astype(np.float32)
    x = np.concatenate([face_images.prepare(faces, size, 0.1), face_images.prepare(colour, size)])
    return x, torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def same(x, kernel, stride):
    """Pads as TensorFlow's "SAME": the odd pixel goes to the end."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return pads


def conv(x, kernel, bias=None, stride=1, groups=1):
    padded = F.pad(x, same(x, kernel.shape[-1], stride))
    return F.conv2d(padded, kernel, bias, stride, groups=groups)


def separable(x, w, name, stride=1):
    x = conv(x, w[name + "/depthwise_filter"], None, stride, groups=x.shape[1])
    return F.conv2d(x, w[name + "/pointwise_filter"], w[name + "/bias"])


def max_pool_same(x):
    return F.max_pool2d(F.pad(x, same(x, 3, 2), value=-torch.inf), 3, 2)


def torch_recogniser(x):
    w = tensors("face_recognition")

    def layer(x, name, stride=1):
        kernel, bias = w[name + "/conv/filters"], w[name + "/conv/bias"]
        x = conv(x, kernel, bias) if stride == 1 else F.conv2d(x, kernel, bias, stride)
        shape = (1, -1, 1, 1)
        return x * w[name + "/scale/weights"].view(shape) + w[name + "/scale/biases"].view(shape)

    x = F.max_pool2d(layer(x, "conv32_down", 2).relu(), 3, 2)
    # The order of the blocks is that of the tensors in the file.
    for name in dict.fromkeys(key.split("/")[0] for key in w if "/conv1/" in key):
        stride = 2 if "down" in name else 1
        y = layer(layer(x, name + "/conv1", stride).relu(), name + "/conv2")
        if stride == 2:
            x = F.avg_pool2d(x, 2)
            x = torch.cat([x, x.new_zeros(len(x), y.shape[1] - x.shape[1], *x.shape[2:])], 1)
            larger = x.new_zeros(y.shape[:2] + x.shape[2:])
            larger[:, :, :y.shape[2], :y.shape[3]] = y
            y = larger
        x = (x + y).relu()
    return x.mean((2, 3)) @ w["fc"]


def torch_age_gender(x):
    w = tensors("age_gender")

    def reduction(x, name, activate=True):
        y = separable(x.relu() if activate else x, w, name + "/separable_conv0")
        y = max_pool_same(separable(y.relu(), w, name + "/separable_conv1"))
        return y + conv(x, w[name + "/expansion_conv/filters"], w[name + "/expansion_conv/bias"], 2)

    x = conv(x, w["entry_flow/conv_in/filters"], w["entry_flow/conv_in/bias"], 2).relu()
    x = reduction(x, "entry_flow/reduction_block_0", activate=False)
    x = reduction(x, "entry_flow/reduction_block_1")
    for block in range(2):
        y = x
        for index in range(3):
            y = separable(y.relu(), w, f"middle_flow/main_block_{block}/separable_conv{index}")
        x = x + y
    x = reduction(x, "exit_flow/reduction_block")
    x = F.avg_pool2d(separable(x, w, "exit_flow/separable_conv").relu(), 7, 2).flatten(1)
    return [(x @ w[f"fc/{head}/weights"] + w[f"fc/{head}/bias"]) for head in ("age", "gender")]


def torch_expression(x):
    w = tensors("face_expression")
    for block in range(4):
        name = f"dense{block}"
        if block == 0:
            a = conv(x, w[name + "/conv0/filters"], w[name + "/conv0/bias"], 2).relu()
        else:
            a = separable(x, w, name + "/conv0", 2).relu()
        b = separable(a, w, name + "/conv1")
        c = separable((a + b).relu(), w, name + "/conv2")
        d = separable((a + b + c).relu(), w, name + "/conv3")
        x = (a + b + c + d).relu()
    return F.avg_pool2d(x, 7, 2).flatten(1) @ w["fc/weights"] + w["fc/bias"]


def test_recogniser():
    x, reference = images(face_recogniser.INPUT_SIZE)
    with torch.no_grad():
        expected = torch_recogniser(reference).numpy()
    params = face_recogniser.load_params()
    actual = jax.jit(face_recogniser.FaceRecogniser().apply)({"params": params}, x)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_age_and_gender():
    x, reference = images(age_gender.INPUT_SIZE)
    with torch.no_grad():
        age, gender = torch_age_gender(reference)
    params = age_gender.load_params()
    actual_age, actual_gender = jax.jit(age_gender.AgeGender().apply)({"params": params}, x)
    np.testing.assert_allclose(actual_age, age[:, 0], atol=1e-4)
    np.testing.assert_allclose(actual_gender, gender, atol=1e-4)


def test_expression():
    x, reference = images(expression.INPUT_SIZE)
    with torch.no_grad():
        expected = torch_expression(reference).numpy()
    params = expression.load_params()
    actual = jax.jit(expression.Expression().apply)({"params": params}, x)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
