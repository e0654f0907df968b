"""DreamBooth-LoRA and inversion gradients equal those of torch and PEFT on a tiny UNet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w import lora, subspace
from w2w.diffusion import component_config, dreambooth, objectives, pretrained
from w2w.diffusion.latents import Photographs
from w2w.diffusion.noise import NoiseProcess
from w2w.diffusion.pipeline import Condition, predict
from w2w.diffusion.unet import UNet

torch = pytest.importorskip("torch", reason="torch is the oracle of parity tests (extra: test)")
diffusers = pytest.importorskip("diffusers", reason="the oracle of these tests (extra: test)")
peft = pytest.importorskip("peft", reason="the oracle of these tests (extra: test)")
from tests.parity import tiny_diffusion as tiny  # noqa: E402

pytestmark = pytest.mark.parity
TIMES = np.array([17, 901], np.int32)
CONFIG = lora.LoraConfig(rank=1, alpha=27.0)
# The blocks of Stable Diffusion 1.5 at a hundredth of its widths; minutes to compile.
ALL_LEVELS = dict(
    block_out_channels=(4, 4, 8, 8),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    layers_per_block=2,
    norm_num_groups=2,
)
BLOCKS = {"one level": tiny.ONE_LEVEL, "all levels": ALL_LEVELS}


@functools.cache
def network(blocks="one level"):
    """(torch UNet, our apply function, parameters, layout, random flat adapter)."""
    oracle = tiny.unet("sd1", **BLOCKS[blocks])
    config = component_config.unet_config(oracle.config)
    params = pretrained.unet_params(tiny.state(oracle), config)
    layout = lora.Layout.from_params(params, CONFIG)
    vector = 0.05 * np.random.default_rng(5).normal(size=layout.size).astype(np.float32)
    return oracle, functools.partial(predict, UNet(config)), params, layout, vector


@functools.cache
def with_peft(blocks="one level"):
    _, _, _, layout, vector = network(blocks)
    settings = peft.LoraConfig(
        r=1, lora_alpha=27, target_modules=["to_q", "to_v", "query", "value"]
    )
    with tiny.quiet():
        model = peft.get_peft_model(tiny.unet("sd1", **BLOCKS[blocks]), settings)
    adapter = lora.unflatten(jnp.asarray(vector), layout)
    tensors = {k: torch.tensor(np.asarray(v)) for k, v in lora.to_peft(adapter, layout).items()}
    assert not peft.set_peft_model_state_dict(model, tensors).unexpected_keys
    return model


def data(side=8):
    rng = np.random.default_rng(0)
    latents, noise = rng.normal(size=(2, 2, side, side, 4)).astype(np.float32)
    return latents, noise, rng.normal(size=(2, 5, 12)).astype(np.float32)


def first(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def torch_prediction(model, side=8):
    """The model's output for :func:`data`, and its target of each kind."""
    latents, noise, text = data(side)
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    args = first(latents), first(noise), torch.from_numpy(TIMES).long()
    out = model(scheduler.add_noise(*args), args[2], torch.from_numpy(text)).sample
    return out, {"epsilon": args[1], "v_prediction": scheduler.get_velocity(*args)}


def assert_close(found, expected):
    error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    print(f"relative max error {error:.1e}")  # pytest -rP
    assert error <= 1e-4


@pytest.mark.parametrize(
    ("blocks", "side", "tensors"),
    [("one level", 8, 32), pytest.param("all levels", 16, 128, marks=pytest.mark.full_size)],
)
def test_one_dreambooth_step(blocks, side, tensors):
    """Loss and all gradients, for noise and for velocity prediction."""
    _, apply_fn, params, layout, vector = network(blocks)
    model = with_peft(blocks)
    out, targets = torch_prediction(model, side)
    expected = []
    for target in targets.values():
        model.zero_grad()
        square = (out - target) ** 2
        wanted = square[:1].mean() + 0.7 * square[1:].mean()  # instance, then class
        wanted.backward(retain_graph=True)
        gradients = {
            name.replace(".default", ""): value.grad.numpy().copy()
            for name, value in model.named_parameters()
            if value.grad is not None
        }
        expected.append((wanted.item(), gradients))
    latents, noise, text = data(side)

    def losses(adapter):
        predict = lora.adapted(apply_fn, params, adapter, CONFIG)
        values = [
            objectives.dreambooth(
                predict, latents, Condition(text), noise, TIMES,
                NoiseProcess(prediction=prediction), class_count=1, prior_weight=0.7,
            )
            for prediction in targets
        ]
        return jnp.stack(values), values

    adapter = lora.unflatten(jnp.asarray(vector), layout)
    with jax.default_matmul_precision("highest"):
        gradients, values = jax.jit(jax.jacrev(losses, has_aux=True))(adapter)
    for i, (wanted, wanted_gradients) in enumerate(expected):
        assert_close(values[i], wanted)
        found = lora.to_peft(jax.tree.map(lambda leaf, i=i: leaf[i], gradients), layout)
        assert set(found) == set(wanted_gradients) and len(found) == tensors
        for name, gradient in found.items():
            assert np.abs(wanted_gradients[name]).max() > 0
            assert_close(gradient, wanted_gradients[name])


@pytest.mark.usefixtures("standard_promotion")  # optax.adamw: 1 - decay**count
def test_ten_dreambooth_steps():
    """The step of the published recipe (clipped AdamW) ends at torch's weights, for two people.

    Another learning rate and norm, so that there is something to see and some steps are clipped.
    """
    steps, people = 10, 2
    recipe = dreambooth.Recipe(steps, learning_rate=1e-3, clip=0.4, prior_weight=0.7)
    _, apply_fn, params, layout, vector = network()
    problem = dreambooth.Problem(apply_fn, NoiseProcess(), CONFIG, recipe)
    rng = np.random.default_rng(2)
    mean = rng.normal(size=(people + 1, 4, 8, 8, 4)).astype(np.float32)
    deviation = np.full_like(mean, 0.3)
    count = np.full(people + 1, 4, np.int32)
    everything = jax.tree.map(jnp.asarray, Photographs(mean, deviation, count, None))
    persons = jax.tree.map(lambda leaf: leaf[:people], everything)
    text = rng.normal(size=(2, 1, 5, 12)).astype(np.float32)
    shared = dreambooth.Shared(
        params, *map(Condition, text), jax.tree.map(lambda leaf: leaf[people], everything)
    )
    states = dreambooth.init(jax.random.key(0), people, params, problem)
    start = lora.unflatten(jnp.asarray(vector), layout)
    states = states.replace(params=jax.tree.map(lambda x: jnp.stack([x] * people), start))
    step, key = jax.jit(dreambooth.make_step(problem)), jax.random.key(4)
    draw = jax.jit(lambda key, one: dreambooth.draw(key, one, shared, problem))
    draws: list[list] = [[] for _ in range(people)]
    with jax.default_matmul_precision("highest"):
        for i in range(steps):
            states, metrics = step(states, (persons, key, shared), key)
            for person, done in enumerate(draws):
                one = jax.tree.map(lambda leaf, person=person: leaf[person], persons)
                drawn = jax.device_get(draw(jax.random.fold_in(key, i), one))
                done.append((drawn, float(metrics["loss"][person])))

    for person, done in enumerate(draws):
        expected, begun, norms = torch_training(done, recipe)
        assert min(norms) < recipe.clip < max(norms)  # some are clipped
        adapter = jax.tree.map(lambda leaf, person=person: leaf[person], states.params)
        for name, found in lora.to_peft(adapter, layout).items():
            torch_name = name.replace(".weight", ".default.weight")
            change = np.abs(expected[torch_name] - begun[torch_name]).max()
            assert change > 0.3 * recipe.learning_rate * steps
            assert np.abs(np.asarray(found) - expected[torch_name]).max() <= 1e-3 * change


def torch_training(draws, recipe):
    """Weights after and before DreamBooth with torch's AdamW on given draws, and gradient norms."""
    model = with_peft.__wrapped__()  # one's own, as its weights change
    start = {n: p.detach().clone().numpy() for n, p in model.named_parameters() if p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, recipe.learning_rate, recipe.betas, recipe.epsilon, recipe.weight_decay
    )
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    norms = []
    for drawn, found in draws:
        optimiser.zero_grad()
        clean, noise = first(drawn.clean), first(drawn.noise)
        t = torch.from_numpy(np.array(drawn.timesteps)).long()
        noisy = scheduler.add_noise(clean, noise, t)
        text = torch.from_numpy(np.array(drawn.condition.text))
        square = (model(noisy, t, text).sample - noise) ** 2
        loss = square[:1].mean() + recipe.prior_weight * square[1:].mean()  # instance, then class
        assert abs(found - loss.item()) <= 1e-4 * loss.item()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, recipe.clip).item())
        optimiser.step()
    end = {n: p.detach().numpy() for n, p in model.named_parameters() if p.requires_grad}
    return end, start, norms


def test_inversion_gradient_and_mask():
    """d loss / d coefficients, masked, equals autograd of the same formula."""
    oracle, apply_fn, params, layout, vector = network()
    rng = np.random.default_rng(1)
    k = 3
    components = np.linalg.qr(rng.normal(size=(layout.size, k)))[0].T.astype(np.float32)
    std = (0.05 * rng.normal(size=layout.size)).astype(np.float32)  # negative entries, too
    beta = rng.normal(size=k).astype(np.float32)
    mask = np.zeros((2, 8, 8, 1), np.float32)
    mask[:, 2:6, 1:7] = 1.0
    mask[:, 2, 1:7] = 0.5

    coefficients = torch.from_numpy(beta).requires_grad_()
    flat = (coefficients @ torch.from_numpy(components)) * torch.from_numpy(std)
    flat = flat + torch.from_numpy(vector)
    weights, offset = {}, 0
    for name, rows, columns in ((n, *s) for n, s in zip(layout.names, layout.shapes, strict=True)):
        weights[name] = flat[offset : offset + rows * columns].reshape(rows, columns)
        offset += rows * columns
    prefix, merged = "base_model.model.", {}
    for module, _, _ in layout.modules:
        a, b = (weights[f"{prefix}{module}.lora_{x}.weight"] for x in "AB")
        merged[f"{module}.weight"] = oracle.get_parameter(f"{module}.weight") + 27.0 * (b @ a)

    def merged_model(*args):
        return torch.func.functional_call(oracle, merged, args)

    out, targets = torch_prediction(merged_model)
    wanted = (((out - targets["epsilon"]) * first(mask)) ** 2).mean()
    wanted.backward()

    space = subspace.Subspace(*map(jnp.asarray, (vector, std, components, np.ones(k))), n=4)
    latents, noise, text = data()

    def loss(beta, latents_noise):
        return objectives.inversion(
            beta, space, layout, CONFIG, apply_fn, params, latents, Condition(text),
            latents_noise, TIMES, NoiseProcess(), mask,
        )

    with jax.default_matmul_precision("highest"):
        found, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(beta), noise)
    assert_close(found, wanted.item())
    assert_close(gradient, coefficients.grad.numpy())
