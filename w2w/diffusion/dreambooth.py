"""DreamBooth-LoRA of Stable Diffusion for many people at once: photographs to adapters.

The recipe of the published adapters (Ruiz et al., "DreamBooth", CVPR 2023, with prior preservation,
on LoRA factors; weights2weights, as released). Everything but the adapters is frozen and shared:
the step is ``vmap`` over people, so that each layer of the network is one product over the images
of all of them, and only the thin factors have a batch of weights.

All people start from one ``a`` (``b`` is zero), which gives their adapters a common gauge, and have
common random numbers: in step ``i`` everybody gets the same choice of views (of equally many),
class images, samples of the posterior, noise and timesteps. So do the published adapters, which
were all trained with one seed. What the noise does to an adapter is then nearly the same for all
and stays out of their differences, which are what a weight space describes. A person's adapter does
not depend on who else is trained beside it.

Pure functions of arrays, but for :func:`train`, which runs the steps and resumes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common import loop, rng
from common.checkpoint import Checkpointer
from common.train_state import TrainState
from common.writer import Writer
from w2w import lora, population
from w2w.diffusion import latents, objectives
from w2w.diffusion.latents import Photographs
from w2w.diffusion.noise import NoiseProcess


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How adapters are trained. The defaults are those of the published ones.

    Attributes:
      steps: AdamW steps, at a constant learning rate.
      batch: noisy images of each person in a step.
      class_batch: noisy images of the class beside them; 0: no prior preservation.
      prior_weight: weight of the mean error of the class images.
      learning_rate: of AdamW.
      betas: decay of AdamW's two moments.
      epsilon: of AdamW.
      weight_decay: decoupled, as in ``torch.optim.AdamW``.
      clip: largest norm of a person's gradient.
    """

    steps: int = 800
    batch: int = 1
    class_batch: int = 1
    prior_weight: float = 1.0
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 1e-2
    clip: float = 1.0

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch", 1), ("class_batch", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {least}")
        for name in ("prior_weight", "learning_rate", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")
        if not self.clip > 0:
            raise ValueError(f"clip = {self.clip} must be positive")

    @functools.cache  # noqa: B019 (few recipes exist); states of one recipe have one pytree type
    def optimiser(self) -> optax.GradientTransformation:
        """AdamW after the gradient was clipped by its global norm."""
        b1, b2 = self.betas
        adamw = optax.adamw(
            self.learning_rate, b1, b2, eps=self.epsilon, weight_decay=self.weight_decay
        )
        return optax.chain(optax.clip_by_global_norm(self.clip), adamw)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a step is compiled for.

    Attributes:
      apply_fn: ``(params, noisy [batch, h, w, c], timesteps [batch], condition) -> prediction``,
        not jitted; compiled programs are kept for each object.
      process: noise schedule, and whether noise or velocity is predicted.
      lora_config: targets, rank and scale of the adapters.
      recipe: see :class:`Recipe`.
    """

    apply_fn: Callable[..., jax.Array]
    process: NoiseProcess
    lora_config: lora.LoraConfig
    recipe: Recipe


class Shared(NamedTuple):
    """Arrays that all people share; a pytree.

    Attributes:
      params: of the network.
      condition: of the instance prompt, pytree of ``[1, ...]``.
      class_condition: of the class prompt, likewise; None without prior preservation.
      class_images: latents of images of the class, as if of one person; None likewise.
    """

    params: Any
    condition: Any
    class_condition: Any = None
    class_images: Photographs | None = None


class Draw(NamedTuple):
    """The random inputs of one step of one person: images of the person, then of the class.

    Attributes:
      clean: scaled latents ``[batch + class_batch, h, w, c]``.
      noise: standard normal, of the same shape.
      timesteps: int32 ``[batch + class_batch]``.
      condition: of each image's prompt, pytree of ``[batch + class_batch, ...]``.
    """

    clean: jax.Array
    noise: jax.Array
    timesteps: jax.Array
    condition: Any


def draw(key: jax.Array, photographs: Photographs, shared: Shared, problem: Problem) -> Draw:
    """The random inputs of a step: views, samples of their posteriors, noise and timesteps.

    Args:
      key: random key; people with equal keys and equally many views have all but the photographs
        in common.
      photographs: of one person.
      shared: prompts and class images.
      problem: see :class:`Problem`.
    """
    pick_key, posterior_key, class_key, noise_key = jax.random.split(key, 4)
    recipe = problem.recipe
    clean, _ = latents.draw(pick_key, posterior_key, photographs, recipe.batch)
    condition = latents.repeat(shared.condition, recipe.batch)
    if recipe.class_batch:
        if shared.class_images is None:
            raise ValueError(f"class_batch = {recipe.class_batch} without class images")
        pick_key, posterior_key = jax.random.split(class_key)
        others, _ = latents.draw(pick_key, posterior_key, shared.class_images, recipe.class_batch)
        clean = jnp.concatenate([clean, others])
        condition = jax.tree.map(
            lambda *parts: jnp.concatenate(parts),
            condition,
            latents.repeat(shared.class_condition, recipe.class_batch),
        )
    noise, timesteps = objectives.draw(noise_key, clean, problem.process)
    return Draw(clean, noise, timesteps, condition)


def loss(adapter: lora.Adapter, drawn: Draw, params: Any, problem: Problem) -> jax.Array:
    """DreamBooth loss of one person's adapter, a scalar (see :func:`objectives.dreambooth`).

    Differentiate with respect to the adapter; nothing else has a gradient.

    Args:
      adapter: ``{module: {"a": [in, rank], "b": [rank, out]}}``.
      drawn: what :func:`draw` returns.
      params: of the network.
      problem: see :class:`Problem`.
    """
    frozen = jax.lax.stop_gradient(params)
    return objectives.dreambooth(
        lora.adapted(problem.apply_fn, frozen, adapter, problem.lora_config),
        drawn.clean,
        drawn.condition,
        drawn.noise,
        drawn.timesteps,
        problem.process,
        problem.recipe.class_batch,
        problem.recipe.prior_weight,
    )


def init(key: jax.Array, people: int, params: Any, problem: Problem) -> TrainState:
    """States of ``people`` new adapters that change nothing yet, all with the same ``a``."""
    adapters = lora.init(key, params, problem.lora_config, n=people)
    optimiser = problem.recipe.optimiser()
    return jax.vmap(lambda adapter: TrainState.create(adapter, optimiser))(adapters)


def make_step(problem: Problem) -> Callable:
    """The pure step of :func:`common.loop.fit`.

    ``(states, (photographs, key, shared), unused) -> (states, {"loss": [people]})``. The random
    numbers of a step depend on the key and the number of the step alone, for all people.
    """

    def one(state, photographs, key, shared):
        drawn = draw(jax.random.fold_in(key, state.step), photographs, shared, problem)
        value, gradient = jax.value_and_grad(loss)(state.params, drawn, shared.params, problem)
        return state.apply_gradients(gradient), value

    def step(states, batch, unused_key):
        del unused_key  # it depends on the phase's name, that is, on the group of people
        photographs, key, shared = batch
        axes = 0, 0, None, None
        states, losses = jax.vmap(one, in_axes=axes)(states, photographs, key, shared)
        return states, {"loss": losses}

    return step


_step = functools.lru_cache(maxsize=4)(make_step)


def train(
    photographs: Photographs,
    shared: Shared,
    problem: Problem,
    key: jax.Array,
    *,
    checkpointer: Checkpointer | None = None,
    writer: Writer | None = None,
    save_every: int = 0,
    log_every: int = 10,
    name: str = "train",
) -> jax.Array:
    """Adapters of all people as flat vectors, float32 ``[people, D]``.

    Args:
      photographs: of all people, ``[people, views, ...]``, without masks. Arrays that are sharded
        over people stay so.
      shared: network, prompts and class images.
      problem: see :class:`Problem`.
      key: random key, of the adapters' common start and of all steps; with equal keys, a run that
        continues equals one that was not interrupted, to the bit, and people who are trained in
        several calls equal those of one call, up to rounding.
      checkpointer: continues from its newest checkpoint, and saves to it.
      writer: receives the mean loss of every ``log_every``-th step.
      save_every: steps between checkpoints; 0 saves at the end only.
      log_every: see ``writer``.
      name: of the phase in logs.

    Raises:
      ValueError: there are masks, or class images are missing.
      common.loop.NonFiniteLoss: with step, value and number of the person.
      common.loop.Preempted: SIGTERM arrived; the state was saved if there is a checkpointer.
    """
    if photographs.mask is not None:
        raise ValueError("DreamBooth has no masks: an adapter learns whole photographs")
    people = len(photographs.views)
    states = init(rng.stream(key, "adapters"), people, shared.params, problem)
    states = jax.device_put(states, photographs.views.sharding)  # one row for each person
    batch = photographs, rng.stream(key, "steps"), shared
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
    layout = lora.Layout.from_params(shared.params, problem.lora_config)
    return population.flatten_population(states.params, layout)


def make_evaluation(problem: Problem, draws: int) -> Callable:
    """Errors of given adapters on fixed draws of the people's photographs, to compare models with.

    Returns ``(vectors [people, D], photographs, params, condition, key) -> [people]``, pure: the
    mean error of the instance prompt over ``draws`` draws of a batch each. Draw ``i`` has timesteps
    in the ``i``-th of ``draws`` equal parts of the process; noise is common to all people. The zero
    vector is the base network.
    """
    alone = dataclasses.replace(problem, recipe=dataclasses.replace(problem.recipe, class_batch=0))
    steps, batch = problem.process.steps, problem.recipe.batch

    def one(vector, photographs, params, condition, key):
        layout = lora.Layout.from_params(params, problem.lora_config)
        adapter = lora.unflatten(vector, layout)

        def error(i):
            draw_key = jax.random.fold_in(key, i)
            time_key = jax.random.fold_in(draw_key, 1)
            times = objectives.spread_times(time_key, i, draws, batch, steps)
            drawn = draw(draw_key, photographs, Shared(params, condition), alone)
            return loss(adapter, drawn._replace(timesteps=times), params, alone)

        return jnp.mean(jax.lax.map(error, jnp.arange(draws)))

    return jax.vmap(one, in_axes=(0, 0, None, None, None))
