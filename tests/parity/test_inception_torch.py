"""The network of FID against pytorch-fid's, with random weights read from a file of its kind."""

import jax
import numpy as np
import pytest
import torch
from pytorch_fid import inception as theirs

from common.metrics import distribution
from common.nets import inception
from common.porting import PortingError

pytestmark = [pytest.mark.parity, pytest.mark.full_compile]


@pytest.fixture(scope="module")
def oracle():
    """pytorch-fid's network, which downloads its weights, with random ones instead."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:

        def random_weights(url, progress):
            net = theirs._inception_v3(num_classes=1008, aux_logits=False, weights=None)
            for module in net.modules():
                if isinstance(module, torch.nn.Conv2d):  # the default shrinks with every layer
                    torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.normal_(module.running_mean, 0, 0.2)
                    torch.nn.init.uniform_(module.running_var, 0.7, 1.4)
                    torch.nn.init.uniform_(module.weight, 0.7, 1.3)
                    torch.nn.init.normal_(module.bias, 0, 0.2)
            random_weights.state = net.state_dict()
            return random_weights.state

        patch.setattr(theirs, "load_state_dict_from_url", random_weights)
        return theirs.InceptionV3().eval(), random_weights.state


@pytest.fixture(scope="module")
def weights(oracle, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(oracle[1], path)
    return path


def test_features_and_distance_are_those_of_pytorch_fid(oracle, weights):
    coarse = np.random.default_rng(0).random((4, 4, 3, 3)).astype(np.float32)
    images = coarse.repeat(16, axis=1).repeat(16, axis=2)
    with torch.no_grad():
        expected = oracle[0](torch.tensor(images.transpose(0, 3, 1, 2)))[0][:, :, 0, 0].numpy()
    params = inception.load_params(weights)
    with jax.default_matmul_precision("highest"):
        found = np.asarray(inception.features(params, images))
    assert found.shape == (4, inception.FEATURES)
    scale = np.abs(expected).max()
    assert np.abs(expected - expected.mean(axis=0)).max() > 0.02 * scale  # the images do differ
    np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
    ours = distribution.frechet_from_features(found[:2], found[2:])
    assert ours == pytest.approx(distribution.frechet_from_features(expected[:2], expected[2:]),
                                 rel=1e-3)


def test_grey_images_are_repeated():
    images = np.random.default_rng(1).random((2, 28, 28, 1)).astype(np.float32)
    found = inception.prepare(images)
    assert found.shape == (2, inception.SIZE, inception.SIZE, 3)
    np.testing.assert_array_equal(found[..., 0], found[..., 2])
    resized = torch.nn.functional.interpolate(
        torch.tensor(images.transpose(0, 3, 1, 2)), size=(299, 299), mode="bilinear")
    np.testing.assert_allclose(found[..., 1], 2 * resized[:, 0] - 1, atol=1e-5)


def test_another_checkpoint_is_refused(oracle, tmp_path):
    tensors = {k: v for k, v in oracle[1].items() if not k.startswith("Mixed_7c")}
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(PortingError, match="Mixed_7c"):
        inception.load_params(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="found shape"):
        inception.features({}, np.zeros((2, 8, 8, 2), np.float32))
