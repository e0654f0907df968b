"""DenseNet against torchvision on random weights, and Keras' names for the same weights."""

import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.models import DenseNet as TorchDenseNet

from common.nets import densenet
from common.porting import PortingError

pytestmark = pytest.mark.parity

BLOCKS, GROWTH, STEM, CLASSES = (2, 3, 2), 4, 8, 5


def torch_net(seed: int = 0) -> TorchDenseNet:
    """A small network whose running statistics are not the initial ones."""
    torch.manual_seed(seed)
    net = TorchDenseNet(GROWTH, BLOCKS, STEM, num_classes=CLASSES)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return net.eval()


def tensors_of(net: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in net.state_dict().items()}


def keras_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights under the names and in the layout of `keras.applications`."""
    parts = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
             "running_var": "moving_variance"}
    out = {}
    for name, array in tensors.items():
        last = name.rsplit(".", 1)[1]
        if last == "num_batches_tracked":
            continue
        kernel = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        layer = re.match(r"features\.denseblock(\d)\.denselayer(\d+)\.(norm|conv)(\d)", name)
        change = re.match(r"features\.transition(\d)\.(norm|conv)", name)
        if name.startswith("classifier"):
            out["predictions/kernel" if last == "weight" else "predictions/bias"] = array.T
        elif layer:
            block, number, kind, which = layer.groups()
            prefix = f"conv{int(block) + 1}_block{number}"
            out[f"{prefix}_{which}_conv/kernel" if kind == "conv"
                else f"{prefix}_{int(which) - 1}_bn/{parts[last]}"] = kernel
        elif change:
            prefix = f"pool{int(change[1]) + 1}"
            out[f"{prefix}_conv/kernel" if change[2] == "conv"
                else f"{prefix}_bn/{parts[last]}"] = kernel
        elif name == "features.conv0.weight":
            out["conv1/conv/kernel"] = kernel
        else:
            out[f"{'conv1/bn' if 'norm0' in name else 'bn'}/{parts[last]}"] = array
    return out


def test_small_densenet_like_torchvision():
    net = torch_net()
    module = densenet.DenseNet(BLOCKS, GROWTH, STEM, CLASSES)
    variables = densenet.from_tensors(module, tensors_of(net))
    x = np.random.default_rng(0).normal(size=(2, 64, 48, 3)).astype(np.float32)
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        wanted, maps = net(images).numpy(), torch.relu(net.features(images)).numpy()
    np.testing.assert_allclose(module.apply(variables, jnp.asarray(x)), wanted, rtol=0, atol=2e-5)
    headless = {k: v for k, v in tensors_of(net).items() if not k.startswith("classifier")}
    module = densenet.DenseNet(BLOCKS, GROWTH, STEM, 0)
    found = module.apply(densenet.from_tensors(module, headless), jnp.asarray(x))
    np.testing.assert_allclose(found, maps.transpose(0, 2, 3, 1), rtol=0, atol=2e-5)


def test_keras_names_give_the_same_network():
    tensors = tensors_of(torch_net())
    module = densenet.DenseNet(BLOCKS, GROWTH, STEM, CLASSES)
    first = densenet.from_tensors(module, tensors)
    for tail in ("", ":0"):
        named = {f"{name}{tail}": value for name, value in keras_names(tensors).items()}
        jax.tree.map(np.testing.assert_array_equal, first, densenet.from_tensors(module, named))


def test_old_torchvision_names_are_read():
    tensors = tensors_of(torch_net())
    old = {re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", name): value
           for name, value in tensors.items()}
    module = densenet.DenseNet(BLOCKS, GROWTH, STEM, CLASSES)
    jax.tree.map(np.testing.assert_array_equal, densenet.from_tensors(module, tensors),
                 densenet.from_tensors(module, old))


def test_a_missing_tensor_is_named():
    tensors = tensors_of(torch_net())
    del tensors["features.norm5.bias"]
    with pytest.raises(PortingError, match="params/norm5/bias"):
        densenet.from_tensors(densenet.DenseNet(BLOCKS, GROWTH, STEM, CLASSES), tensors)


def test_densenet_121_has_the_published_size():
    module = densenet.DenseNet(classes=0)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    count = {kind: sum(leaf.size for leaf in jax.tree.leaves(tree))
             for kind, tree in flax.core.unfreeze(shapes).items()}
    # Keras counts the averages of batch normalisation as parameters that are not trained.
    assert sum(count.values()) == 7_037_504
    assert count["params"] == 6_953_856
    out = jax.eval_shape(module.apply, shapes, x)
    assert out.shape == (1, 7, 7, 1024)
