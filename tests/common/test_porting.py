"""Tests of rule-based weight porting."""

import jax
import numpy as np
import pytest

from common import porting
from common.porting import PortingError, port


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


TARGETS = {"conv": {"kernel": shape(3, 3, 2, 4), "bias": shape(4)}, "heads": [shape(5, 6)]}
RULES = (
    (r"conv\.weight", "conv/kernel", porting.conv_oihw_to_hwio),
    (r"(conv)\.bias", r"\1/bias", porting.identity),
    (r"head\.(?P<index>\d)\.weight", r"heads/\g<index>", porting.linear_oi_to_io),
    (r".*num_batches_tracked", porting.DROP, porting.identity),
)


def source():
    random = np.random.default_rng(0)
    return {
        "conv.weight": random.normal(size=(4, 2, 3, 3)),
        "conv.bias": random.normal(size=4),
        "head.0.weight": random.normal(size=(6, 5)),
        "bn.num_batches_tracked": np.int64(3),
    }


def test_every_tensor_lands_transformed_in_its_place():
    tensors = source()
    params = port(tensors, RULES, TARGETS)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, TARGETS)
    assert params["conv"]["kernel"].dtype == np.float32
    np.testing.assert_allclose(params["conv"]["kernel"][1, 2, 0, 3],
                               tensors["conv.weight"][3, 0, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(params["heads"][0], tensors["head.0.weight"].T, rtol=1e-6)


def test_both_lists_are_reported():
    tensors = source()
    tensors["extra.weight"] = np.zeros((2, 7))
    del tensors["conv.bias"]
    with pytest.raises(PortingError) as caught:
        port(tensors, RULES, TARGETS)
    assert "no rule matches (1): extra.weight (2, 7)" in str(caught.value)
    assert "targets not filled (1): conv/bias (4,)" in str(caught.value)


def test_rules_match_whole_names():
    tensors = source()
    tensors["my.conv.bias.old"] = tensors.pop("conv.bias")
    with pytest.raises(PortingError, match="no rule matches"):
        port(tensors, RULES, TARGETS)


def test_unknown_target_wrong_shape_and_double_filling_are_refused():
    rules = ((r"conv\.bias", "conv/offset", porting.identity), *RULES)
    with pytest.raises(PortingError, match=r"do not exist \(1\): conv.bias -> conv/offset"):
        port(source(), rules, TARGETS)
    tensors = {**source(), "conv.bias": np.zeros(5)}
    with pytest.raises(PortingError, match=r"shape \(5,\), expected \(4,\)"):
        port(tensors, RULES, TARGETS)
    rules = (*RULES, (r"bias2", "conv/bias", porting.identity))
    with pytest.raises(PortingError, match="conv/bias is filled by both conv.bias and bias2"):
        port({**source(), "bias2": np.zeros(4)}, rules, TARGETS)
    tensors = {**source(), "head.0.weight": np.zeros((6, 5, 1))}
    with pytest.raises(PortingError, match="head.0.weight -> heads/0: expected a matrix"):
        port(tensors, RULES, TARGETS)


def test_transforms():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(porting.conv_oihw_to_hwio(x), x.transpose(2, 3, 1, 0))
    line = x[..., 0]
    np.testing.assert_array_equal(porting.conv_oihw_to_hwio(line), line.transpose(2, 1, 0))
    y = porting.conv_transpose_iohw_to_hwio(x)
    assert y[0, 0, 1, 2] == x[1, 2, 3, 4] and y.shape == (4, 5, 2, 3)
    z = porting.depthwise_hwim_to_hwio(x)
    assert z.shape == (2, 3, 1, 20) and z[1, 2, 0, 7] == x[1, 2, 1, 2]
    assert porting.squeeze(x[:1, :1]).shape == (4, 5)
    assert porting.reshape(-1, 5)(x).shape == (24, 5)
    for transform, bad in ((porting.conv_oihw_to_hwio, x[0, 0]),
                           (porting.conv_transpose_iohw_to_hwio, x[0]),
                           (porting.depthwise_hwim_to_hwio, x[0])):
        with pytest.raises(ValueError, match="found shape"):
            transform(bad)
