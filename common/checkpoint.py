"""Checkpoints: state, data-iterator position and config of a step, saved and restored together.

Orbax writes each checkpoint to a temporary folder and renames it when it is complete, so a process
killed at any moment leaves either a whole checkpoint or none. The state is stored as a flat mapping
from leaf path to array; static parts (the optimiser's functions) are not stored, the template given
to `restore_latest` supplies them.
"""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from common.checksum import checksums
from common.sharding import path_name, place

PyTree = Any
logger = logging.getLogger(__name__)


def _is_key(leaf: Any) -> bool:
    """True for a typed random key array (or its abstract value)."""
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.dtype(object)), jax.dtypes.prng_key)


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Returns `{leaf path: leaf}`; typed random keys become their uint32 data."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        flat[path_name(path)] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return flat


def _key_implementations(tree: PyTree) -> dict[str, str]:
    """Returns `{leaf path: name of the random bit generator}` of the typed random keys."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        path_name(path): str(jax.random.key_impl(leaf)) for path, leaf in leaves if _is_key(leaf)
    }


def _describe(flat: Mapping[str, Any]) -> dict[str, list]:
    """Returns `{path: [shape, dtype name]}`, the summary stored beside the arrays."""
    return {name: [list(np.shape(leaf)), str(jnp.result_type(leaf))] for name, leaf in flat.items()}


class CheckpointMismatchError(ValueError):
    """The state template differs from the checkpoint in a leaf's presence, shape or dtype."""


class Checkpointer:
    """Saves and restores checkpoints `<directory>/<step>`.

    All processes of a multi-process run construct it and call its methods together, on a directory
    they share.

    Args:
        directory: folder of the checkpoints; created where missing.
        keep: number of checkpoints kept, at least 1.
        async_: write in the background; `wait` or the next `save` blocks until it is written.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 2, async_: bool = True):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.directory = pathlib.Path(directory).absolute()
        self._async = async_
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            create=False,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=async_,
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
            preservation_policy=checkpoint_managers.LatestN(keep),
        )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("common.checkpoint.create")
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: PyTree,
        iterator: Any = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves `state` after `step` updates; a step that is saved already is left as it is.

        Args:
            step: number of updates that `state` has seen.
            state: pytree of arrays.
            iterator: data iterator with `get_state()` whose value is JSON. In a multi-process run
                the state of process 0 is stored for all: it must count global batches.
            config: JSON mapping stored with the state, for the reader's information.

        Raises:
            TypeError: the iterator's state or the config is not JSON.
        """
        self._manager.wait_until_finished()
        if step in self._manager.all_steps():
            return
        flat = _flatten(state)
        meta: dict[str, Any] = {
            "step": int(step),
            "leaves": _describe(flat),
            "keys": _key_implementations(state),
            "checksums": checksums(flat),
        }
        if config is not None:
            meta["config"] = _json_value(config, "config")
        if iterator is not None:
            meta["iterator"] = _json_value(iterator.get_state(), "state of the data iterator")
        if self._async:
            # JAX does not reuse a buffer that the writing thread still reads; NumPy would.
            flat = {k: v if isinstance(v, jax.Array) else np.array(v) for k, v in flat.items()}
        self._manager.save(
            int(step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(flat), meta=ocp.args.JsonSave(meta)
            ),
            force=True,
        )

    def restore_latest(
        self, state_template: PyTree, iterator: Any = None
    ) -> tuple[PyTree, int] | None:
        """Returns the newest readable checkpoint as `(state, step)`, or None if there is none.

        The iterator, where given, is set to the state it had at that step. A checkpoint that cannot
        be read (damaged files) is renamed to `damaged-<step>` with a warning, and the one before it
        is taken.

        Args:
            state_template: arrays, or `jax.ShapeDtypeStruct`s with shardings, of the structure,
                shapes and dtypes of the saved state; the result has their shardings.
            iterator: data iterator with `set_state(value)`.

        Raises:
            CheckpointMismatchError: the template does not fit; names the first leaf that differs.
            RuntimeError: checkpoints exist and none of them can be read.
            ValueError: an iterator is given and the checkpoint holds no iterator state.
        """
        self._manager.wait_until_finished()
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            meta, error = self._attempt(lambda step=step: self._read_meta(step))
            if error is None:
                self._check_template(step, meta, state_template)
                flat, error = self._attempt(
                    lambda step=step, meta=meta: self._read_state(step, meta, state_template)
                )
            if error is not None:
                self._set_aside(step, error)
                damaged.append(step)
                continue
            if iterator is not None:
                if "iterator" not in meta:
                    raise ValueError(
                        f"{self.directory / str(step)}: the checkpoint holds no state of a data"
                        " iterator, but an iterator was given to restore"
                    )
                iterator.set_state(meta["iterator"])
            return _unflatten(state_template, flat, meta["keys"]), step
        if damaged:
            raise RuntimeError(
                f"{self.directory}: none of the checkpoints {damaged} can be read; they were"
                " renamed to damaged-<step>"
            )
        return None

    def read_config(self, step: int | None = None) -> dict[str, Any] | None:
        """Returns the config stored with a checkpoint (the newest by default), or None."""
        step = self.latest_step if step is None else step
        return None if step is None else self._read_meta(step).get("config")

    def wait(self) -> None:
        """Blocks until a save in the background is complete; raises what it raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for a save in the background and releases the manager's threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _attempt(self, read: Any) -> tuple[Any, Exception | None]:
        """Returns `(read(), None)` or `(None, error)`; all processes agree on which."""
        value, error = None, None
        try:
            value = read()
        except Exception as caught:  # any reader error means "damaged", reported by the caller
            error = caught
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.asarray(error is not None))
            if np.any(failed) and error is None:
                error = RuntimeError(f"process {int(np.argmax(failed))} could not read it")
        return value, error

    def _read_meta(self, step: int) -> dict[str, Any]:
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return restored["meta"]

    def _read_state(self, step: int, meta: Mapping, template: PyTree) -> dict[str, Any]:
        abstract = {name: _abstract(leaf) for name, leaf in _flatten_abstract(template).items()}
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        sums = checksums(restored["state"])
        wrong = [name for name, value in sums.items() if value != meta["checksums"][name]]
        if wrong:
            raise ValueError(f"leaf '{wrong[0]}' does not have the checksum of the saved one")
        return restored["state"]

    def _check_template(self, step: int, meta: Mapping[str, Any], template: PyTree) -> None:
        """Raises CheckpointMismatchError with the first leaf in which template and file differ."""
        where = self.directory / str(step)
        saved = meta["leaves"]
        wanted = _describe(_flatten_abstract(template))
        for name, (shape, dtype) in wanted.items():
            if name not in saved:
                raise CheckpointMismatchError(
                    f"{where}: the state has the leaf '{name}' {tuple(shape)} {dtype}, which the"
                    " checkpoint lacks"
                )
            if saved[name] != [shape, dtype]:
                raise CheckpointMismatchError(
                    f"{where}: leaf '{name}' is {tuple(saved[name][0])} {saved[name][1]} in the"
                    f" checkpoint and {tuple(shape)} {dtype} in the state"
                )
        for name, (shape, dtype) in saved.items():
            if name not in wanted:
                raise CheckpointMismatchError(
                    f"{where}: the checkpoint has the leaf '{name}' {tuple(shape)} {dtype}, which"
                    " the state lacks"
                )

    def _set_aside(self, step: int, error: Exception) -> None:
        """Renames the folder of a checkpoint that cannot be read, on process 0, and says so."""
        source = self.directory / str(step)
        target = self.directory / f"damaged-{step}"
        number = 1
        while target.exists():
            number += 1
            target = self.directory / f"damaged-{step}-{number}"
        logger.warning("checkpoint %s cannot be read (%s); renamed to %s", source, error, target)
        if jax.process_count() > 1:  # no process may rename while another still reads
            multihost_utils.sync_global_devices(f"common.checkpoint.damaged.{step}")
        if jax.process_index() == 0:
            source.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"common.checkpoint.renamed.{step}")
        self._manager.reload()


def _json_value(value: Any, what: str) -> Any:
    """Returns `value` as plain JSON containers.

    Raises:
        TypeError: it holds something JSON has no form for.
    """
    value = value.to_dict() if hasattr(value, "to_dict") else value
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"the {what} cannot be stored in a checkpoint: {error}") from error


def _flatten_abstract(template: PyTree) -> dict[str, Any]:
    """Like `_flatten`, for templates whose leaves may be abstract."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(template)[0]:
        if _is_key(leaf):
            data = jax.eval_shape(jax.random.key_data, leaf)
            # Keys are small: they are restored in one piece and moved to their sharding later.
            leaf = jax.ShapeDtypeStruct(data.shape, data.dtype)
        flat[path_name(path)] = leaf
    return flat


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf), sharding=sharding)


def _unflatten(
    template: PyTree, flat: Mapping[str, Any], implementations: Mapping[str, str]
) -> PyTree:
    """Returns `template`'s structure filled with the restored arrays; keys are typed again."""

    def fill(path: tuple, leaf: Any) -> Any:
        value = flat[path_name(path)]
        if not _is_key(leaf):
            return value
        key = jax.random.wrap_key_data(jnp.asarray(value), impl=implementations[path_name(path)])
        sharding = getattr(leaf, "sharding", None)
        return key if sharding is None else place(key, sharding)

    return jax.tree_util.tree_map_with_path(fill, template)
