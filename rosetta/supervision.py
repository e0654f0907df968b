"""Training of the small zoo: one pure step for each kind of supervision.

Every objective is `(init, step)`: `init(key) -> state` and `step(state, batch, key) -> (state,
metrics)`, with batches `{"image": [batch, 32, 32, 1] in [-1, 1], "label": [batch] int32}`, as
`common.loop.fit` takes them. `finished` gives the variables that mining sees.

* class: cross-entropy.
* distillation: M. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV
  2021, eq. 1 to 4, with two views (moved, flipped, brightened) and no local crops.
* names: A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
  2021: both directions, where all texts of an image's class are its partners.
* masked: K. He et al., CVPR 2022: squared error on the hidden patches.
* gan: A. Radford et al., ICLR 2016: non-saturating logistic losses, both networks in one step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from rosetta.zoo import small

__all__ = ["NAMES", "Objective", "State", "accuracy", "letters", "objectives", "views"]

NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip


class State(struct.PyTreeNode):
    """Variables of all networks of one objective, optimiser states, and what else it keeps."""

    step: jax.Array
    variables: dict[str, Any]
    opt_states: dict[str, Any]
    extra: dict[str, Any]


class Objective(NamedTuple):
    """How one network is trained; `seen` names the variables that mining sees."""

    init: Callable[[jax.Array], State]
    step: Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]
    seen: str

    def finished(self, state: State) -> Any:
        """The trained variables."""
        return state.variables[self.seen]


def objectives(rate: float = 1e-3) -> dict[str, Objective]:
    """All five objectives, by the names of `rosetta.zoo.small`.

    Args:
      rate: learning rate of Adam (the adversarial networks have a fifth of it and beta1 0.5).
    """
    adam = optax.adam(rate)
    return {
        "class": _labelled(adam),
        "distillation": _distilled(adam),
        "masked": _masked(adam),
        "names": _named(adam),
        "gan": _adversarial(optax.adam(rate / 5, b1=0.5)),
    }


def letters(names: Sequence[str] = NAMES) -> np.ndarray:
    """Names as ASCII codes `[names, longest]`, filled up with 0."""
    result = np.zeros((len(names), max(map(len, names))), np.int32)
    for row, name in zip(result, names, strict=True):
        row[: len(name)] = list(name.encode("ascii"))
    return result


def views(key: jax.Array, images: jax.Array, most: int = 4) -> jax.Array:
    """Images `[batch, 32, 32, 1]` in [-1, 1], each moved, flipped and brightened at random.

    They move by up to `most` pixels; what moves in is background, -1.
    """
    keys = jax.random.split(key, 3)
    count, size = images.shape[:2]
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), constant_values=-1)
    places = jax.random.randint(keys[0], (count, 2), 0, 2 * most + 1)

    def cut(image: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (place[0], place[1], 0), (size, size, 1))

    moved = jax.vmap(cut)(padded, places)
    flip = jax.random.bernoulli(keys[1], shape=(count, 1, 1, 1))
    moved = jnp.where(flip, moved[:, :, ::-1], moved)
    gain = jax.random.uniform(keys[2], (count, 1, 1, 1), minval=0.6, maxval=1.4)
    return jnp.clip((moved + 1) * gain - 1, -1, 1)


def accuracy(variables: Any, images: np.ndarray, labels: np.ndarray, batch: int = 500) -> float:
    """Share of test images whose class the classifier names."""
    run = jax.jit(lambda v, x: small.ConvNet(10).apply(v, x)[0])
    found = [
        np.asarray(run(variables, images[low : low + batch])).argmax(1)
        for low in range(0, len(images), batch)
    ]
    return float((np.concatenate(found) == labels).mean())


def _image() -> jax.Array:
    return jnp.zeros((2, small.SIZE, small.SIZE, 1))


def _start(variables: dict[str, Any], optimised: dict[str, Any], **extra: Any) -> State:
    """A state; `optimised` maps the name of an optimiser state to it."""
    return State(jnp.zeros((), jnp.int32), variables, optimised, extra)


def _updated(
    optimiser: optax.GradientTransformation, gradient: Any, state: Any, params: Any
) -> tuple[Any, Any]:
    updates, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def _labelled(optimiser: optax.GradientTransformation) -> Objective:
    module = small.ConvNet(10)

    def init(key: jax.Array) -> State:
        variables = dict(module.init(key, _image()))
        return _start({"net": variables}, {"net": optimiser.init(variables["params"])})

    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        images = views(key, batch["image"], 2)

        def loss(params: Any) -> Any:
            (logits, _), new = module.apply(
                {**state.variables["net"], "params": params}, images, True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return jnp.mean(losses), new

        params = state.variables["net"]["params"]
        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        params, opt = _updated(optimiser, gradient, state.opt_states["net"], params)
        state = state.replace(
            step=state.step + 1, variables={"net": {"params": params, **new}},
            opt_states={"net": opt},
        )  # fmt: skip
        return state, {"loss": value}

    return Objective(init, step, "net")


def _distilled(optimiser: optax.GradientTransformation) -> Objective:
    module = small.ConvNet(64)
    decay, warm, cold = 0.99, 0.1, 0.05  # of the teacher; temperatures of student and teacher

    def init(key: jax.Array) -> State:
        student = dict(module.init(key, _image()))
        teacher = jax.tree.map(jnp.copy, student)
        opt = {"student": optimiser.init(student["params"])}
        return _start({"student": student, "teacher": teacher}, opt, centre=jnp.zeros((1, 64)))

    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        keys = jax.random.split(key)
        both = jnp.concatenate([views(keys[0], batch["image"]), views(keys[1], batch["image"])])
        (wanted, _), teacher_stats = module.apply(
            state.variables["teacher"], both, True, mutable=["batch_stats"]
        )
        target = jax.nn.softmax((wanted - state.extra["centre"]) / cold)
        other = jnp.concatenate(jnp.split(target, 2)[::-1])  # each view predicts the other's

        def loss(params: Any) -> Any:
            (logits, _), new = module.apply(
                {**state.variables["student"], "params": params}, both, True,
                mutable=["batch_stats"],
            )  # fmt: skip
            return -jnp.mean(jnp.sum(other * jax.nn.log_softmax(logits / warm), 1)), new

        params = state.variables["student"]["params"]
        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        params, opt = _updated(optimiser, gradient, state.opt_states["student"], params)
        average = jax.tree.map(
            lambda a, b: decay * a + (1 - decay) * b, state.variables["teacher"]["params"], params
        )
        variables = {
            "student": {"params": params, **new}, "teacher": {"params": average, **teacher_stats},
        }  # fmt: skip
        centre = 0.9 * state.extra["centre"] + 0.1 * jnp.mean(wanted, 0, keepdims=True)
        mean = jnp.mean(target, 0)  # of low entropy if all images get one answer
        entropy = -jnp.sum(mean * jnp.log(mean + 1e-9))
        state = state.replace(
            step=state.step + 1, variables=variables, opt_states={"student": opt},
            extra={"centre": centre},
        )  # fmt: skip
        return state, {"loss": value, "entropy": entropy}

    return Objective(init, step, "teacher")


def _named(optimiser: optax.GradientTransformation) -> Objective:
    module, tower = small.ConvNet(64), small.LetterTower(64)
    words = letters()

    def init(key: jax.Array) -> State:
        keys = jax.random.split(key)
        variables = dict(module.init(keys[0], _image()))
        text = tower.init(keys[1], words)["params"]
        trained = {"net": variables["params"], "text": text, "log_scale": jnp.float32(np.log(10))}
        held = {"net": variables, "text": {"params": text}}
        return _start(held, {"all": optimiser.init(trained)}, log_scale=trained["log_scale"])

    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        images = views(key, batch["image"], 2)
        same = batch["label"].reshape(-1, 1) == batch["label"].reshape(1, -1)
        same = same.astype(jnp.float32)
        partners = same / jnp.sum(same, 1, keepdims=True)

        def loss(trained: Any) -> Any:
            (found, _), new = module.apply(
                {**state.variables["net"], "params": trained["net"]}, images, True,
                mutable=["batch_stats"],
            )  # fmt: skip
            text = tower.apply({"params": trained["text"]}, words)[batch["label"]]
            found, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (found, text))
            logits = jnp.exp(jnp.minimum(trained["log_scale"], np.log(100.0))) * (found @ text.T)
            both = [optax.softmax_cross_entropy(x, partners) for x in (logits, logits.T)]
            return jnp.mean(jnp.stack(both)), new

        trained = {
            "net": state.variables["net"]["params"],
            "text": state.variables["text"]["params"],
            "log_scale": state.extra["log_scale"],
        }
        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
        trained, opt = _updated(optimiser, gradient, state.opt_states["all"], trained)
        variables = {"net": {"params": trained["net"], **new}, "text": {"params": trained["text"]}}
        state = state.replace(
            step=state.step + 1, variables=variables, opt_states={"all": opt},
            extra={"log_scale": trained["log_scale"]},
        )  # fmt: skip
        return state, {"loss": value}

    return Objective(init, step, "net")


def _masked(optimiser: optax.GradientTransformation) -> Objective:
    module = small.MaskedAutoencoder()
    count = (small.SIZE // 4) ** 2
    kept = round((1 - small.MASKED_SHARE) * count)

    def init(key: jax.Array) -> State:
        variables = dict(module.init(key, _image(), jnp.tile(jnp.arange(count), (2, 1))))
        return _start({"net": variables}, {"net": optimiser.init(variables["params"])})

    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        images = batch["image"]
        order = jnp.argsort(jax.random.uniform(key, (images.shape[0], count)), 1)
        hidden = (jnp.argsort(order, 1) >= kept).astype(jnp.float32)[..., None]

        def loss(params: Any) -> jax.Array:
            made: Any = module.apply({"params": params}, images, order)
            error = jnp.square(made - small.patches(images)) * hidden
            return jnp.sum(error) / (jnp.sum(hidden) * made.shape[-1])

        params = state.variables["net"]["params"]
        value, gradient = jax.value_and_grad(loss)(params)
        params, opt = _updated(optimiser, gradient, state.opt_states["net"], params)
        state = state.replace(
            step=state.step + 1, variables={"net": {"params": params}}, opt_states={"net": opt}
        )
        return state, {"loss": value}

    return Objective(init, step, "net")


def _adversarial(optimiser: optax.GradientTransformation) -> Objective:
    module, judge = small.SmallGenerator(), small.Discriminator()

    def init(key: jax.Array) -> State:
        keys = jax.random.split(key)
        made = dict(module.init(keys[0], jnp.zeros((2, small.LATENT))))
        judged = dict(judge.init(keys[1], _image()))
        opt = {"gan": optimiser.init(made["params"]), "judge": optimiser.init(judged["params"])}
        return _start({"gan": made, "judge": judged}, opt)

    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        z = jax.random.normal(key, (batch["image"].shape[0], small.LATENT))
        stats = state.variables["judge"]["batch_stats"]

        def verdict(params: Any, images: jax.Array) -> jax.Array:
            # Batch statistics always: real and made images are normalised apart.
            output: Any = judge.apply(
                {"params": params, "batch_stats": stats}, images, mutable=["batch_stats"]
            )
            return output[0]

        def of_generator(params: Any) -> Any:
            (images, _), new = module.apply(
                {**state.variables["gan"], "params": params}, z, True, mutable=["batch_stats"]
            )
            judged = verdict(state.variables["judge"]["params"], images)
            return jnp.mean(jax.nn.softplus(-judged)), (new, images)

        def of_judge(params: Any, images: jax.Array) -> jax.Array:
            real, made = verdict(params, batch["image"]), verdict(params, images)
            return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(made))

        params = {name: state.variables[name]["params"] for name in ("gan", "judge")}
        (value, (new, images)), gradient = jax.value_and_grad(of_generator, has_aux=True)(
            params["gan"]
        )
        judged, other = jax.value_and_grad(of_judge)(params["judge"], images)
        gan, gan_opt = _updated(optimiser, gradient, state.opt_states["gan"], params["gan"])
        judge_, judge_opt = _updated(optimiser, other, state.opt_states["judge"], params["judge"])
        state = state.replace(
            step=state.step + 1,
            variables={
                "gan": {"params": gan, **new}, "judge": {"params": judge_, "batch_stats": stats},
            },
            opt_states={"gan": gan_opt, "judge": judge_opt},
        )  # fmt: skip
        return state, {"loss": value, "judge": judged}

    return Objective(init, step, "gan")
