"""Steps per second of DreamBooth-LoRA of Stable Diffusion, in JAX and in torch.

    python benchmarks/w2w_dreambooth.py [--size small|sd15] [--people 1 4]
        [--dtype bfloat16] [--device cuda]

One step is that of the published adapters: one noisy image of the person and one of the class, the
loss of both, its gradient with respect to LoRA factors at the queries and values of the UNet, the
gradient's norm clipped, AdamW. In torch the frozen UNet is diffusers' with peft's layers, and
people follow one another, as in the original. In JAX all people are one batch. Both have the same
random weights, adapters and latents; before timing, loss and all gradients are compared. The two
take turns, and the median of the rounds is printed. Compilation is excluded. On a GPU, float32 is
multiplied by TensorFloat-32 by both, except in the comparison (see timing.py). Small has an eighth
of Stable Diffusion 1.5's widths in its UNet and a quarter of its sides; sd15 is the full size (on a
CPU, torch and JAX share the memory).
"""

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import stable_diffusion
import timing
import torch
from stable_diffusion import LORA, SIZES, channels_first

from w2w import lora
from w2w.diffusion import dreambooth
from w2w.diffusion.dreambooth import Draw, Problem, Recipe, Shared
from w2w.diffusion.latents import Photographs
from w2w.diffusion.noise import NoiseProcess
from w2w.diffusion.pipeline import Condition, predictor

import peft  # isort: skip  # after stable_diffusion, which makes torchvision importable


class TorchDreamBooth:
    """The published step in torch, for one person at a time."""

    def __init__(self, unet: Any, text: np.ndarray, recipe: Recipe, device: str):
        config = peft.LoraConfig(r=LORA.rank, lora_alpha=27, target_modules=["to_q", "to_v"])
        self.unet = peft.get_peft_model(unet, config).train()
        self.device, self.recipe = device, recipe
        self.text = torch.as_tensor(text, device=device)  # of the instance, of the class
        self.scheduler = stable_diffusion.scheduler()
        named = dict(self.unet.named_parameters())
        self.factors = {n.replace(".default", ""): p for n, p in named.items() if p.requires_grad}

    def loss(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        noisy = self.scheduler.add_noise(clean, noise, t)
        square = (stable_diffusion.predict(self.unet, noisy, t, self.text) - noise) ** 2
        return square[:1].mean() + self.recipe.prior_weight * square[1:].mean()

    def people(self, latents: np.ndarray) -> list[tuple[list, Any, torch.Tensor]]:
        """(factors, optimiser, latents of the person and the class) of each person."""
        made, recipe = [], self.recipe
        for own in latents:
            factors = [copy.deepcopy(p) for p in self.factors.values()]
            optimiser = torch.optim.AdamW(
                factors, recipe.learning_rate, recipe.betas, recipe.epsilon, recipe.weight_decay
            )
            made.append((factors, optimiser, channels_first(own, self.device)))
        return made

    def step(self, people: list[tuple[list, Any, torch.Tensor]]) -> None:
        for factors, optimiser, clean in people:
            # The network's parameters take the person's values, and give their gradients back.
            for parameter, own in zip(self.factors.values(), factors, strict=True):
                parameter.data, parameter.grad = own.data, None
            t = torch.randint(0, 1000, clean.shape[:1], device=self.device)
            self.loss(clean, torch.randn_like(clean), t).backward()
            for parameter, own in zip(self.factors.values(), factors, strict=True):
                own.grad = parameter.grad
            torch.nn.utils.clip_grad_norm_(factors, self.recipe.clip)
            optimiser.step()


def compare(
    ours: Problem, theirs: TorchDreamBooth, shared: Shared, vector: jax.Array, clean: np.ndarray
) -> str:
    """Relative differences of one loss, and of the gradients (the worst of all tensors)."""
    rng = np.random.default_rng(3)
    layout = lora.Layout.from_params(shared.params, LORA)
    adapter = lora.unflatten(vector, layout)
    for name, value in lora.to_peft(adapter, layout).items():
        theirs.factors[name].data = torch.as_tensor(np.array(value), device=theirs.device)
    noise, t = rng.standard_normal(clean.shape, np.float32), np.array([501, 77], np.int32)
    condition = jax.tree.map(
        lambda *parts: jnp.concatenate(parts), shared.condition, shared.class_condition
    )
    drawn = Draw(jnp.asarray(clean), jnp.asarray(noise), jnp.asarray(t), condition)
    function = jax.jit(jax.value_and_grad(functools.partial(dreambooth.loss, problem=ours)))
    value, gradient = function(adapter, drawn, shared.params)
    args = (channels_first(x, theirs.device) for x in (clean, noise))
    expected = theirs.loss(*args, torch.as_tensor(t, device=theirs.device).long())
    expected.backward()
    worst = 0.0
    for name, found in lora.to_peft(gradient, layout).items():
        wanted = theirs.factors[name].grad.cpu().numpy()
        worst = max(worst, np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())
    error = abs(float(value) - expected.item()) / expected.item()
    return f"loss {error:.1e}, gradients {worst:.1e}"


def main() -> None:
    options = stable_diffusion.options_of(__doc__.splitlines()[0]).parse_args()
    timing.prepare(options.device)
    size = SIZES[options.size]
    rng = np.random.default_rng(0)
    unet, shapes = stable_diffusion.architecture(size, options.dtype)
    layout = lora.Layout.from_params(shapes, LORA)
    text = rng.standard_normal((2, 77, size["text"]), np.float32)
    shape = (1, size["side"], size["side"], 4)
    of_class = rng.standard_normal(shape, np.float32)

    def exactly(latents: np.ndarray) -> Photographs:
        """Latents as photographs of one view that are known exactly."""
        values, people = jnp.asarray(latents), jnp.ones(latents.shape[:-4], jnp.int32)
        return Photographs(values, jnp.zeros_like(values), people, None)

    conditions = (Condition(jnp.asarray(text[i : i + 1])) for i in range(2))
    abstract = Shared(shapes, *conditions, exactly(of_class))
    problem = Problem(predictor(unet), NoiseProcess(), LORA, Recipe())
    step = jax.jit(dreambooth.make_step(problem), donate_argnums=0)
    cases, lowered = {}, {}
    for count in options.people:
        latents = rng.standard_normal((count, *shape), np.float32)
        state = dreambooth.init(jax.random.key(0), count, shapes, problem)
        cases[count] = latents, exactly(latents), state
        batch = cases[count][1], jax.random.key(1), abstract
        lowered[count] = step.lower(state, batch, jax.random.key(0))
    programs = stable_diffusion.compile_all(lowered)
    timing.my_turn()
    oracle, params = stable_diffusion.weights(size, options, unet)
    shared = abstract._replace(params=params)
    theirs = TorchDreamBooth(oracle, text, problem.recipe, options.device)
    more = f"adapters of {layout.size:,} values"
    stable_diffusion.header(options, params, more)
    vector = jnp.asarray(0.05 * rng.standard_normal(layout.size, np.float32))
    first = np.concatenate([rng.standard_normal(shape, np.float32), of_class])
    if options.compare:
        with timing.exact():
            differences = compare(problem, theirs, shared, vector, first)
        print(f"differences: {differences}", flush=True)

    stable_diffusion.table_head()
    for count, (latents, photographs, first_state) in cases.items():
        state, data = [first_state], (photographs, jax.random.key(1), shared)

        def ours(program=programs[count], state=state, data=data) -> None:
            state[0], _ = program(state[0], data, jax.random.key(0))

        def wait(state=state) -> None:
            jax.block_until_ready(state[0])

        both = np.concatenate([latents, np.broadcast_to(of_class, latents.shape)], axis=1)
        oneself = functools.partial(theirs.step, theirs.people(both))
        stable_diffusion.compete(count, ours, wait, oneself, options)
    stable_diffusion.footer(options)


if __name__ == "__main__":
    main()
