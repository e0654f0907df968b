"""The trunks of DeepCOVID-XR against torchvision and timm, at random weights and few blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from timm.models import efficientnet as timm_efficientnet
from timm.models.inception_resnet_v2 import InceptionResnetV2
from torch import nn
from torchvision.models import efficientnet as torch_efficientnet
from torchvision.models import inception as torch_inception
from torchvision.models import resnet as torch_resnet
from torchvision.models import vgg as torch_vgg

from common.nets import efficientnet, inception_resnet, inception_v3, resnet_trunk, xception
from common.porting import PortingError
from medical.medxgan import vgg

pytestmark = pytest.mark.parity


def randomised(net: nn.Module) -> nn.Module:
    """Random weights and running statistics, so that features neither die nor explode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.8, 1.2, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
            elif isinstance(module, nn.Conv2d):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5,
                                      generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
    return net.eval()


def tensors_of(net: nn.Module, *left_out: str) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in net.state_dict().items()
            if not name.startswith(left_out)}


def blocks_kept(sequence: nn.Sequential, count: int) -> nn.Sequential:
    return nn.Sequential(*list(sequence)[:count])


def resnet():
    net = torch_resnet.ResNet(torch_resnet.Bottleneck, [2, 1, 1, 1], width_per_group=64)
    parts = [net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3,
             net.layer4]
    module = resnet_trunk.ResNetTrunk((2, 1, 1, 1), style="torch")
    return net, nn.Sequential(*parts), module, resnet_trunk, ("fc.",), 64


def inception():
    net = torch_inception.Inception3(num_classes=2, aux_logits=True, init_weights=False)

    class Features(nn.Module):
        def forward(self, x):
            found = []
            net.avgpool.register_forward_hook(lambda m, given, out: found.append(given[0]))
            net(x)
            return found[-1]

    module = inception_v3.InceptionV3("torch")
    return net, Features().eval(), module, inception_v3, ("fc.",), 96


def inception_residual():
    net = InceptionResnetV2(num_classes=2)
    net.repeat, net.repeat_1 = blocks_kept(net.repeat, 2), blocks_kept(net.repeat_1, 1)
    net.repeat_2 = blocks_kept(net.repeat_2, 1)
    module = inception_resnet.InceptionResNetV2("torch", repeats=(2, 1, 1))
    return net, net.forward_features, module, inception_resnet, ("classif.",), 96


def xception_port():
    net = timm.create_model("legacy_xception", num_classes=2)
    module = xception.Xception("torch")
    return net, net.forward_features, module, xception, ("fc.",), 80


def efficientnet_torchvision():
    net = torch_efficientnet.efficientnet_b2()
    module = efficientnet.EfficientNet(*efficientnet.SCALES["b2"], style="torch")
    return net, net.features, module, efficientnet, ("classifier.",), 64


def efficientnet_tensorflow():
    net = timm_efficientnet.tf_efficientnet_b0(num_classes=2)
    module = efficientnet.EfficientNet(*efficientnet.SCALES["b0"], style="keras")
    return net, net.forward_features, module, efficientnet, ("classifier.",), 64


CASES = (resnet, inception, inception_residual, xception_port, efficientnet_torchvision,
         efficientnet_tensorflow)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_feature_maps(case):
    net, forward, module, source, left_out, size = case()
    randomised(net)
    tensors = tensors_of(net, *left_out)
    variables = source.from_tensors(module, tensors)
    x = np.random.default_rng(0).normal(size=(2, size, size + 16, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = forward(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    wanted = wanted.transpose(0, 2, 3, 1)
    found = np.asarray(jax.jit(module.apply)(variables, jnp.asarray(x)))
    assert found.shape == wanted.shape and wanted.std() > 0.01
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5 * np.abs(wanted).max())
    name = next(name for name in tensors if name.endswith("running_var"))
    del tensors[name]
    with pytest.raises(PortingError, match="targets not filled"):
        source.from_tensors(module, tensors)


@pytest.mark.parametrize("size", [32, 96, 256])
def test_the_classifier_of_xrays(size):
    """VGG16's layout with a longer head, where the last map is smaller and larger than 7 x 7."""
    stages, widths = ((4, 1), (6, 2), (5, 1), (8, 1), (6, 2)), (7, 6, 5)
    plan = [width if i < count else "M" for width, count in stages for i in range(count + 1)]
    net = torch_vgg.VGG(torch_vgg.make_layers(plan), 2, init_weights=False)
    net.classifier = nn.Sequential(
        nn.Linear(6 * 49, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 6), nn.ReLU(), nn.Dropout(),
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)))
    randomised(net)
    tensors = tensors_of(net)
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("classifier.6.")}
    module = vgg.VggClassifier(stages, widths)
    params = vgg.from_tensors(module, tensors)
    for layer, place in (("dense3", "0"), ("out", "2")):
        params[layer] = {"kernel": head[f"classifier.6.{place}.weight"].T,
                         "bias": head[f"classifier.6.{place}.bias"]}
    x = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    found = jax.jit(module.apply)({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
