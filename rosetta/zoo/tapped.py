"""A network as (apply, params, taps): what mining needs to know of it.

Any function of parameters and images that returns maps is a model; Flax is not required:

    Tapped("mine", lambda params, images: {"layer": maps}, params, ("layer",))
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rosetta.units import Layout

__all__ = [
    "Generator", "Tapped", "captured", "edited_inputs", "edited_outputs", "forward", "parameters",
]

Maps = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Tapped:
    """A network that sees images.

    Attributes:
      name: unique in a run.
      apply: `(params, images [batch, height, width, 3] in [0, 1]) -> {tap: [batch, s, s, c]}`,
        pre-processing included.
      params: pytree of arrays.
      taps: the taps to be mined, in the order in which units are numbered.
      calibrate: `(params, images) -> params` sets normalisation statistics to those of `images`
        layer by layer, for weights that were not trained; None if the network has none.
    """

    name: str
    apply: Callable[[Any, jax.Array], Maps]
    params: Any
    taps: tuple[str, ...]
    calibrate: Callable[[Any, jax.Array], Any] | None = None

    def layout(self, size: int) -> Layout:
        """The units, for images of `size x size` pixels.

        Raises:
          MapError: maps that cannot be mined.
        """
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        return Layout.of(self.name, jax.eval_shape(self.apply, self.params, images), self.taps)


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A network that makes images.

    Attributes:
      name: unique in a run.
      apply: `(params, latents) -> (images [batch, size, size, 3] in [0, 1], {tap: maps})`; images
        are not clipped.
      params: pytree of arrays.
      taps: the taps to be mined, in the order in which units are numbered.
      sample: `(key, count) -> latents`, a pytree of arrays `[count, ...]`.
      mean: the mean of the latents, without batch axis, towards which inversion may be drawn.
      apply_edited: `(params, latents, edit) -> as apply`, where `edit(tap, maps) -> maps` changes
        the maps of each tap before what follows is computed; None if the network has no such form.
    """

    name: str
    apply: Callable[[Any, Any], tuple[jax.Array, Maps]]
    params: Any
    taps: tuple[str, ...]
    sample: Callable[[jax.Array, int], Any]
    mean: Any = 0.0
    apply_edited: Callable[..., tuple[jax.Array, Maps]] | None = None

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, Mapping[str, jax.ShapeDtypeStruct]]:
        """Shapes of one image and its maps."""

        def one(params: Any, key: jax.Array) -> tuple[jax.Array, Maps]:
            return self.apply(params, self.sample(key, 1))

        return jax.eval_shape(one, self.params, jax.random.key(0))

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.shapes()[0].shape[1]

    def layout(self) -> Layout:
        """The units.

        Raises:
          MapError: maps that cannot be mined.
        """
        return Layout.of(self.name, self.shapes()[1], self.taps)


def forward(
    generator: Generator, models: tuple[Tapped, ...]
) -> Callable[[Any, Any], tuple[jax.Array, dict[str, Maps]]]:
    """`(params by model name, latents) -> (images, maps by model and tap)`; one generator pass."""

    def run(params: Mapping[str, Any], latents: Any) -> tuple[jax.Array, dict[str, Maps]]:
        images, maps = generator.apply(params[generator.name], latents)
        seen = {model.name: model.apply(params[model.name], images) for model in models}
        return images, {generator.name: maps, **seen}

    return run


def edited_inputs(
    run: Callable[[], Any], edit: Callable[[str, jax.Array], jax.Array], taps: Mapping[str, str]
) -> tuple[Any, dict[str, jax.Array]]:
    """Runs a Flax network with edited maps.

    Args:
      run: calls the module; its result is returned.
      edit: `(tap, maps) -> maps`.
      taps: name of the submodule (of the outermost module) whose input a tap is -> tap.

    Returns:
      The result, and the edited maps by tap.
    """
    found: dict[str, jax.Array] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path in taps:
            found[taps[path]] = edit(taps[path], args[0])
            args = (found[taps[path]], *args[1:])
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        return run(), found


def edited_outputs(
    run: Callable[[], Any],
    edit: Callable[[str, jax.Array], jax.Array],
    taps: Mapping[str, str],
    change: Callable[[Any, Callable[[jax.Array], jax.Array]], tuple[Any, jax.Array]] | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
    """Runs a Flax network with edited maps, as `edited_inputs` does, where taps are outputs.

    Args:
      run: calls the module; its result is returned.
      edit: `(tap, maps) -> maps`.
      taps: "/"-joined path of the submodule whose output a tap is -> tap.
      change: `(output, edit of maps) -> (new output, edited maps)` of a submodule that returns
        more than its maps.
    """
    found: dict[str, jax.Array] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name != "__call__" or path not in taps:
            return output
        tap = taps[path]

        def own(maps: jax.Array) -> jax.Array:
            return edit(tap, maps)

        if change is None:
            output = found[tap] = own(output)
        else:
            output, found[tap] = change(output, own)
        return output

    with nn.intercept_methods(intercept):
        return run(), found


def parameters(generator: Generator, models: tuple[Tapped, ...]) -> dict[str, Any]:
    """Parameters by name, as `forward` takes them."""
    return {generator.name: generator.params, **{model.name: model.params for model in models}}


def captured(module: nn.Module, kind: type[nn.Module]) -> Callable[[Any, jax.Array], Maps]:
    """`(variables, x) -> {submodule's name: its output}` for a Flax module's parts of one kind."""

    def apply(variables: Any, x: jax.Array) -> Maps:
        _, state = module.apply(
            variables,
            x,
            capture_intermediates=lambda part, _: isinstance(part, kind),
            mutable=["intermediates"],
        )
        found = state["intermediates"]
        return {name: entry["__call__"][0] for name, entry in found.items()}

    return apply
