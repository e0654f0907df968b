"""Steps per second of inversion into a Stable Diffusion space, in JAX and in torch.

    python benchmarks/w2w_inversion.py [--size small|sd15] [--people 1 4]
        [--dtype bfloat16] [--device cuda]

One step is the paper's: coefficients to LoRA factors (``V beta``), the denoising loss of one noisy
image for each person with the factors at the queries and values of the UNet, its gradient with
respect to the coefficients, Adam. In torch the frozen UNet is diffusers', the factors are added to
the layers' outputs (``y + scale (x a) b``), and people follow one another, as in the original. In
JAX all people are one batch. Both have the same random weights, space and latents; before timing,
loss and gradient are compared. The two take turns, and the median of the rounds is printed.
Compilation is excluded. On a GPU, float32 is multiplied by TensorFloat-32 by both, except in the
comparison (see timing.py). Small has an eighth of Stable Diffusion 1.5's widths in its UNet, a
quarter of its sides and 1,000 components; sd15 is the full size with 10,000 (over 24 GB on a CPU,
where torch and JAX share the memory; 21 GiB with --components 1000, and a minute a step).
"""

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
from w2w.diffusion import inversion, objectives
from w2w.diffusion.latents import Photographs
from w2w.diffusion.noise import NoiseProcess
from w2w.diffusion.pipeline import Condition, predictor
from w2w.subspace import Subspace


@functools.partial(jax.jit, static_argnums=(0, 1))
def random_space(size: int, k: int, key: jax.Array) -> Subspace:
    """Nearly orthonormal rows; deviations as large as those of trained adapters."""
    keys = jax.random.split(key, 3)
    components = jax.random.normal(keys[0], (k, size)) / np.sqrt(size)
    mean = 0.02 * jax.random.normal(keys[1], (size,))
    std = 0.01 * jnp.exp(0.5 * jax.random.normal(keys[2], (size,)))
    return Subspace(mean, std, components, jnp.ones(k), n=k + 1)


class TorchInversion:
    """The paper's step in torch, for one person at a time."""

    def __init__(self, unet: Any, space: Subspace, layout: lora.Layout, text: Any, device: str):
        tensor = functools.partial(torch.as_tensor, device=device)
        self.unet, self.layout, self.device = unet, layout, device
        self.mean, self.std = (tensor(np.array(x)) for x in (space.mean, space.std))
        self.components = tensor(np.array(space.components))
        self.text = tensor(text)
        self.scheduler = stable_diffusion.scheduler()
        self.factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, _, _ in layout.modules:
            hook = functools.partial(self.adapt, name)
            unet.get_submodule(name).register_forward_hook(hook)

    def adapt(self, name: str, module: Any, args: tuple, output: torch.Tensor) -> torch.Tensor:
        a, b = self.factors[name]
        a, b = (factor.to(output.dtype) for factor in (a, b))
        return output + LORA.scale * (args[0] @ a[:, None]) * b

    def loss(
        self, beta: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        flat, offset = (beta @ self.components) * self.std + self.mean, 0
        for name, fan_in, fan_out in self.layout.modules:
            middle, end = offset + fan_in, offset + fan_in + fan_out
            self.factors[name], offset = (flat[offset:middle], flat[middle:end]), end
        noisy = self.scheduler.add_noise(latents, noise, t)
        text = self.text.expand(len(latents), -1, -1)
        return ((stable_diffusion.predict(self.unet, noisy, t, text) - noise) ** 2).mean()

    def people(self, latents: np.ndarray) -> list[tuple[torch.Tensor, Any, torch.Tensor]]:
        """(coefficients, optimiser, latents) of each person."""
        made = []
        for own in latents:
            beta = torch.zeros(len(self.components), device=self.device, requires_grad=True)
            optimiser = torch.optim.Adam([beta], 0.1, weight_decay=1e-10)
            made.append((beta, optimiser, channels_first(own, self.device)))
        return made

    def step(self, people: list[tuple[torch.Tensor, Any, torch.Tensor]]) -> None:
        for beta, optimiser, latents in people:
            optimiser.zero_grad()
            t = torch.randint(0, 1000, latents.shape[:1], device=self.device)
            self.loss(beta, latents, torch.randn_like(latents), t).backward()
            optimiser.step()


def compare(
    ours: inversion.Problem,
    theirs: TorchInversion,
    shared: inversion.Shared,
    latents: np.ndarray,
) -> str:
    """Relative differences of one loss and its gradient."""
    rng = np.random.default_rng(3)
    beta = rng.standard_normal(shared.space.k, np.float32)
    noise, t = rng.standard_normal(latents.shape, np.float32), np.array([501])

    def loss(beta, shared):
        return objectives.inversion(
            beta, shared.space, ours.layout, LORA, ours.apply_fn, shared.params, latents,
            shared.condition, noise, t, ours.process,
        )

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(beta), shared)
    leaf = torch.as_tensor(beta, device=theirs.device).requires_grad_()
    args = (channels_first(x, theirs.device) for x in (latents, noise))
    expected = theirs.loss(leaf, *args, torch.as_tensor(t, device=theirs.device))
    expected.backward()
    wanted = leaf.grad.cpu().numpy()
    error = np.abs(np.asarray(gradient) - wanted).max() / np.abs(wanted).max()
    return f"loss {abs(float(value) - expected.item()) / expected.item():.1e}, gradient {error:.1e}"


def main() -> None:
    parser = stable_diffusion.options_of(__doc__.splitlines()[0])
    parser.add_argument("--components", type=int, default=0)
    options = parser.parse_args()
    timing.prepare(options.device)
    size = SIZES[options.size]
    rng = np.random.default_rng(0)
    unet, shapes = stable_diffusion.architecture(size, options.dtype)
    layout = lora.Layout.from_params(shapes, LORA)
    k = options.components or size["components"]
    text = rng.standard_normal((1, 77, size["text"]), np.float32)
    condition = Condition(jnp.asarray(text))
    make_space = functools.partial(random_space, layout.size, k, jax.random.key(2))
    abstract = inversion.Shared(jax.eval_shape(make_space), shapes, condition)
    recipe = inversion.Recipe(batch=1)
    problem = inversion.Problem(predictor(unet), NoiseProcess(), layout, LORA, recipe)
    shape = (1, size["side"], size["side"], 4)
    step = jax.jit(inversion.make_step(problem), donate_argnums=0)
    cases, lowered = {}, {}
    for count in options.people:
        latents = rng.standard_normal((count, *shape), np.float32)
        photographs = Photographs(
            jnp.asarray(latents), jnp.zeros(latents.shape), jnp.ones(count, jnp.int32), None
        )
        keys, state = jax.random.split(jax.random.key(1), count), inversion.init(count, k, recipe)
        cases[count] = latents, photographs, keys, state
        lowered[count] = step.lower(state, (photographs, keys, abstract), jax.random.key(0))
    programs = stable_diffusion.compile_all(lowered)
    timing.my_turn()
    oracle, params = stable_diffusion.weights(size, options, unet)
    shared = inversion.Shared(make_space(), params, condition)
    theirs = TorchInversion(oracle, shared.space, layout, text, options.device)
    more = f"{k} components of {layout.size:,} values"
    stable_diffusion.header(options, params, more)
    first = rng.standard_normal(shape, np.float32)
    if options.compare:
        with timing.exact():
            print(f"differences: {compare(problem, theirs, shared, first)}", flush=True)

    stable_diffusion.table_head()
    for count, (latents, photographs, keys, first_state) in cases.items():
        state, data = [first_state], (photographs, keys, shared)

        def ours(program=programs[count], state=state, data=data) -> None:
            state[0], _ = program(state[0], data, jax.random.key(0))

        def wait(state=state) -> None:
            jax.block_until_ready(state[0])

        people = theirs.people(latents)
        oneself = functools.partial(theirs.step, people)
        stable_diffusion.compete(count, ours, wait, oneself, options)
    stable_diffusion.footer(options)


if __name__ == "__main__":
    main()
