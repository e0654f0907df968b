"""LoRA against PEFT on a small torch network: file order, forward, gradients, merging, export."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file

from w2w import lora

pytestmark = pytest.mark.parity

WIDTH, TEXT = 12, 7
CASES = pytest.mark.parametrize(("rank", "rslora"), [(1, False), (4, False), (4, True)])


class TorchAttention(torch.nn.Module):
    def __init__(self, context):
        super().__init__()
        self.to_q = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = torch.nn.Linear(context, WIDTH, bias=False)
        self.to_v = torch.nn.Linear(context, WIDTH, bias=False)
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(WIDTH, WIDTH)])

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out[0](torch.softmax(q @ k.mT / WIDTH**0.5, -1) @ v)


class TorchBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1, self.attn2 = TorchAttention(WIDTH), TorchAttention(TEXT)

    def forward(self, x, text):
        x = x + self.attn1(x, x)
        return x + self.attn2(x, text)


class TorchNetwork(torch.nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.down_blocks = torch.nn.ModuleList(TorchBlock() for _ in range(blocks))

    def forward(self, x, text):
        for block in self.down_blocks:
            x = block(x, text)
        return x


class FlaxAttention(nn.Module):
    @nn.compact
    def __call__(self, x, context):
        def dense(name):
            return nn.Dense(WIDTH, use_bias=False, name=name)

        q, k, v = dense("to_q")(x), dense("to_k")(context), dense("to_v")(context)
        weights = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / WIDTH**0.5)
        return nn.Dense(WIDTH, name="to_out_0")(weights @ v)


class FlaxBlock(nn.Module):
    @nn.compact
    def __call__(self, x, text):
        x = x + FlaxAttention(name="attn1")(x, x)
        return x + FlaxAttention(name="attn2")(x, text)


class FlaxNetwork(nn.Module):
    @nn.compact
    def __call__(self, x, text):
        for i in range(2):
            x = FlaxBlock(name=f"down_blocks_{i}")(x, text)
        return x


def call(params, x, text):
    return FlaxNetwork().apply({"params": params}, x, text)


jitted_call = jax.jit(call)


def flax_params(network):
    """The torch network's parameters under the flax names, by an independent rule."""
    params = {}
    for name, value in network.named_parameters():
        path = name.replace("down_blocks.", "down_blocks_").replace("to_out.0", "to_out_0")
        *parents, leaf = path.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        array = value.detach().numpy()
        node["kernel" if leaf == "weight" else "bias"] = array.T if leaf == "weight" else array
    return params


def torch_network(blocks=2):
    torch.manual_seed(0)
    return TorchNetwork(blocks)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    shapes = (3, 5, WIDTH), (3, 4, TEXT)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def with_peft(rank, rslora, blocks=2):
    """A PEFT model with trained-looking factors, and our configuration of the same."""
    config = peft.LoraConfig(
        r=rank, lora_alpha=27, target_modules=["to_q", "to_v"], use_rslora=rslora
    )
    model = peft.get_peft_model(torch_network(blocks), config)
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    return model, lora.LoraConfig(rank, 27.0, rslora=rslora)


def saved(model, path):
    model.save_pretrained(path, save_embedding_layers=False)
    return load_file(path / "adapter_model.safetensors")


@CASES
def test_flat_vector_is_the_saved_file(tmp_path, rank, rslora):
    """Keys, shapes and values, in order, of what ``save_pretrained`` writes."""
    blocks = 11  # number 10 sorts before number 2
    model, config = with_peft(rank, rslora, blocks)
    layout = lora.Layout.from_params(flax_params(torch_network(blocks)), config)
    tensors = saved(model, tmp_path)
    assert layout.names == tuple(sorted(tensors))
    assert layout.shapes == tuple(tensors[name].shape for name in layout.names)
    vector = np.concatenate([tensors[name].ravel() for name in sorted(tensors)])
    adapter = lora.from_peft(tensors, layout)
    np.testing.assert_array_equal(lora.flatten(adapter, layout), vector)
    back = lora.to_peft(lora.unflatten(jnp.asarray(vector), layout), layout)
    assert list(back) == sorted(tensors)
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])


@CASES
def test_forward_gradients_and_merging(tmp_path, inputs, rank, rslora):
    model, config = with_peft(rank, rslora)
    params = flax_params(torch_network())
    layout = lora.Layout.from_params(params, config)
    adapter = lora.from_peft(saved(model, tmp_path), layout)

    wanted = model(*map(torch.from_numpy, inputs))
    torch.mean(wanted**2).backward()
    gradients = {
        name.replace(".default", ""): value.grad.numpy()
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    wanted = wanted.detach().numpy()

    def loss(adapter):
        y = lora.adapted(call, params, adapter, config)(*inputs)
        return jnp.mean(y**2), y

    got_gradients, got = jax.jit(jax.grad(loss, has_aux=True))(adapter)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, atol=1e-5 * scale)
    assert np.abs(wanted - jitted_call(params, *inputs)).max() > 0.01 * scale
    assert set(gradients) == set(layout.names)
    for name, value in lora.to_peft(got_gradients, layout).items():
        limit = 1e-4 * np.abs(gradients[name]).max()
        np.testing.assert_allclose(value, gradients[name], atol=limit, err_msg=name)

    for merged in (lora.merge(params, adapter, config), lora.apply(params, adapter, config)):
        np.testing.assert_allclose(jitted_call(merged, *inputs), wanted, atol=1e-5 * scale)
    exported = lora.merge(params, adapter, config)
    torch_merged = flax_params(model.merge_and_unload())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), exported, torch_merged)


@pytest.mark.parametrize("name", ["default", "identity1"])
def test_export_loads_under_any_adapter_name(inputs, name):
    """Our state dict in a fresh PEFT model changes its output to ours, at several multipliers."""
    params, config = flax_params(torch_network()), lora.LoraConfig(4, 27.0)
    layout = lora.Layout.from_params(params, config)
    adapter = lora.unflatten(0.05 * jax.random.normal(jax.random.key(0), (layout.size,)), layout)
    settings = peft.LoraConfig(r=4, lora_alpha=27, target_modules=["to_q", "to_v"])
    model = peft.get_peft_model(torch_network(), settings, adapter_name=name)
    tensors = {k: torch.tensor(np.asarray(v)) for k, v in lora.to_peft(adapter, layout).items()}
    result = peft.set_peft_model_state_dict(model, tensors, adapter_name=name)
    assert not result.unexpected_keys
    for multiplier in (1.0, 0.5):
        for module in model.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.set_scale(name, multiplier)
        wanted = model(*map(torch.from_numpy, inputs)).detach().numpy()
        got = jax.jit(lora.adapted(call, params, adapter, config, multiplier))(*inputs)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, atol=1e-5 * scale)
        assert np.abs(wanted - jitted_call(params, *inputs)).max() > 0.01 * scale


def test_initial_values_have_the_distribution_of_peft():
    """``a`` uniform with PEFT's bound for its input width, ``b`` zero."""
    config = peft.LoraConfig(r=64, target_modules=["to_q", "to_v"])
    model = peft.get_peft_model(torch_network(), config)
    theirs = dict(model.named_parameters())
    params = flax_params(torch_network())
    ours = lora.init(jax.random.key(0), params, lora.LoraConfig(rank=64))
    for module, factors in ours.items():
        a = theirs[f"base_model.model.{module}.lora_A.default.weight"].detach().numpy().T
        assert a.shape == factors["a"].shape
        np.testing.assert_allclose(np.abs(factors["a"]).max(), np.abs(a).max(), rtol=0.03)
        np.testing.assert_allclose(factors["a"].std(), a.std(), rtol=0.15)
        assert not factors["b"].any()
