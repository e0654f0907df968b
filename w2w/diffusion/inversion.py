"""Inversion into a space of Stable Diffusion adapters: photographs to coefficients.

Only the coefficients ``beta [k]`` of the weight space are optimised, from the mean model, under the
masked denoising loss of the instance prompt (Dravid et al., "Interpreting the Weight Space of
Customized Diffusion Models", NeurIPS 2024, eq. 3 and section 3.4; the mask as released). All people
are inverted at once: the step is ``vmap`` over people, so that each layer of the frozen network is
one product over the images of all of them, and the expansion of the coefficients reads the
components once.

Pure functions of arrays, but for :func:`invert`, which runs the steps and resumes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common import loop
from common.checkpoint import Checkpointer
from common.train_state import TrainState
from common.writer import Writer
from w2w import lora
from w2w.diffusion import latents, objectives
from w2w.diffusion.latents import Photographs
from w2w.diffusion.noise import NoiseProcess
from w2w.subspace import Subspace

UNITS = ("raw", "deviations")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How coefficients are optimised. The defaults are the paper's for a photograph.

    Attributes:
      steps: Adam steps (paper: 400; 800 where the identity is weak or for paintings).
      batch: noisy images of each person in a step.
      learning_rate: of Adam, in ``units`` (paper: 0.1 with 10,000 components, 1.0 with 1,000).
      weight_decay: factor of the coefficients that is added to their gradient, as in
        ``torch.optim.Adam``.
      units: "raw" optimises the coefficients themselves, as the paper does; "deviations" optimises
        them in units of each component's standard deviation over the models of the space, so that
        one learning rate suits all components.
    """

    steps: int = 400
    batch: int = 1
    learning_rate: float = 0.1
    weight_decay: float = 1e-10
    units: str = "raw"

    def __post_init__(self):
        if self.units not in UNITS:
            raise ValueError(f"units = {self.units!r}; expected {' or '.join(UNITS)}")
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps = {self.steps} and batch = {self.batch} must be positive")

    @functools.cache  # noqa: B019 (few recipes exist); states of one recipe have one pytree type
    def optimiser(self) -> optax.GradientTransformation:
        """Adam with weight decay in the gradient."""
        decay = optax.add_decayed_weights(self.weight_decay)
        return optax.chain(decay, optax.adam(self.learning_rate))


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a step is compiled for.

    Attributes:
      apply_fn: ``(params, noisy [batch, h, w, c], timesteps [batch], condition) -> prediction``,
        not jitted; compiled programs are kept for each object.
      process: noise schedule, and whether noise or velocity is predicted.
      layout: order of the flat adapters.
      lora_config: rank and scale of the adapters.
      recipe: see :class:`Recipe`.
    """

    apply_fn: Callable[..., jax.Array]
    process: NoiseProcess
    layout: lora.Layout
    lora_config: lora.LoraConfig
    recipe: Recipe


class Shared(NamedTuple):
    """Arrays that all people share; a pytree.

    Attributes:
      space: the weight space; all of its components are used.
      params: of the network.
      condition: of the instance prompt, pytree of ``[1, ...]``.
    """

    space: Subspace
    params: Any
    condition: Any


def coefficients(values: jax.Array, space: Subspace, recipe: Recipe) -> jax.Array:
    """Coefficients ``[..., k]`` of what is optimised, ``values [..., k]``."""
    if recipe.units == "raw":
        return values
    return values * jnp.broadcast_to(jnp.sqrt(space.variances), values.shape)


def loss(
    values: jax.Array,
    photographs: Photographs,
    key: jax.Array,
    shared: Shared,
    problem: Problem,
    timesteps: jax.Array | None = None,
) -> jax.Array:
    """Denoising loss of one person at ``values [k]``, a scalar (paper, eq. 3).

    Differentiate with respect to ``values``; nothing else has a gradient.

    Args:
      values: coefficients in the units of the recipe.
      photographs: of one person.
      key: chooses the views (uniformly), the sample of the posterior, noise and timesteps.
      shared: space, network and prompt.
      problem: see :class:`Problem`.
      timesteps: int32 ``[batch]`` instead of uniform ones.
    """
    pick_key, posterior_key, noise_key = jax.random.split(key, 3)
    batch = problem.recipe.batch
    clean, mask = latents.draw(pick_key, posterior_key, photographs, batch)
    noise, drawn = objectives.draw(noise_key, clean, problem.process)
    space = jax.lax.stop_gradient(shared.space)
    return objectives.inversion(
        coefficients(values, space, problem.recipe),
        space,
        problem.layout,
        problem.lora_config,
        problem.apply_fn,
        jax.lax.stop_gradient(shared.params),
        clean,
        latents.repeat(shared.condition, batch),
        noise,
        drawn if timesteps is None else timesteps,
        problem.process,
        mask,
    )


def init(people: int, k: int, recipe: Recipe) -> TrainState:
    """States of ``people`` inversions at the mean model, with values ``[people, k]``."""
    optimiser = recipe.optimiser()
    return jax.vmap(lambda zeros: TrainState.create(zeros, optimiser))(jnp.zeros((people, k)))


def make_step(problem: Problem) -> Callable:
    """The pure step of :func:`common.loop.fit`.

    ``(states, (photographs, keys [people], shared), unused) -> (states, {"loss": [people]})``.
    A person's random numbers depend on the person's key and the step alone, so that people together
    equal people one by one.
    """

    def one(state, photographs, key, shared):
        step_key = jax.random.fold_in(key, state.step)
        value, gradient = jax.value_and_grad(loss)(
            state.params, photographs, step_key, shared, problem
        )
        return state.apply_gradients(gradient), value

    def step(states, batch, unused_key):
        del unused_key  # it depends on the phase's name, that is, on the group of people
        photographs, keys, shared = batch
        states, losses = jax.vmap(one, in_axes=(0, 0, 0, None))(states, photographs, keys, shared)
        return states, {"loss": losses}

    return step


@jax.jit
def _own(key: jax.Array, seeds: jax.Array) -> jax.Array:
    """The key of each person."""
    return jax.vmap(lambda seed: jax.random.fold_in(key, seed))(seeds)


_step = functools.lru_cache(maxsize=4)(make_step)


def invert(
    photographs: Photographs,
    seeds: jax.Array,
    shared: Shared,
    problem: Problem,
    key: jax.Array,
    *,
    checkpointer: Checkpointer | None = None,
    writer: Writer | None = None,
    save_every: int = 0,
    log_every: int = 10,
    name: str = "invert",
) -> jax.Array:
    """Coefficients ``[people, k]`` of the models that draw the photographs.

    Args:
      photographs: of all people, ``[people, views, ...]``. Arrays that are sharded over people stay
        so.
      seeds: uint32 ``[people]``, one for each person.
      shared: space, network and prompt.
      problem: see :class:`Problem`.
      key: random key; with equal keys, a run that continues equals one that was not interrupted.
      checkpointer: continues from its newest checkpoint, and saves to it.
      writer: receives the mean loss of every ``log_every``-th step.
      save_every: steps between checkpoints; 0 saves at the end only.
      log_every: see ``writer``.
      name: of the phase in logs.

    Raises:
      common.loop.NonFiniteLoss: with step, value and number of the person.
      common.loop.Preempted: SIGTERM arrived; the state was saved if there is a checkpointer.
    """
    states = init(len(seeds), shared.space.k, problem.recipe)
    states = jax.device_put(states, photographs.views.sharding)  # one row for each person
    batch = photographs, _own(key, seeds), shared
    states = loop.fit(
        states,
        _step(problem),
        lambda step: batch,
        num_steps=problem.recipe.steps,
        key=key,
        checkpointer=checkpointer,
        writer=writer,
        log_every=log_every,
        checkpoint_every=save_every,
        name=name,
    )
    return coefficients(states.params, shared.space, problem.recipe)


def make_evaluation(problem: Problem, draws: int) -> Callable:
    """Losses of given coefficients on fixed draws, to compare models with.

    Returns ``(coefficients [people, k], photographs, seeds [people], shared, key) -> [people]``,
    pure: the mean loss over ``draws`` draws of a batch each. Draw ``i`` has timesteps in the
    ``i``-th of ``draws`` equal parts of the process, and the same noise for all coefficients.
    """
    raw = dataclasses.replace(problem, recipe=dataclasses.replace(problem.recipe, units="raw"))
    steps, batch = problem.process.steps, problem.recipe.batch

    def one(beta, photographs, seed, shared, key):
        own_key = jax.random.fold_in(key, seed)

        def draw(i):
            draw_key = jax.random.fold_in(own_key, i)
            time_key = jax.random.fold_in(draw_key, 1)
            times = objectives.spread_times(time_key, i, draws, batch, steps)
            return loss(beta, photographs, draw_key, shared, raw, times)

        return jnp.mean(jax.lax.map(draw, jnp.arange(draws)))

    return jax.vmap(one, in_axes=(0, 0, 0, None, None))
