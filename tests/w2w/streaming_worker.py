"""One of several processes that fit one space, for test_streaming.py.

`streaming_worker.py FOLDER COORDINATOR NUM_PROCESSES PROCESS_ID` fits FOLDER/*.npy and writes
FOLDER/<method>-<process>.safetensors.
"""

import pathlib
import sys

import jax
import numpy as np

from common import distributed


def main(folder: pathlib.Path) -> None:
    from w2w import subspace
    from w2w.pca import streaming

    me = jax.process_index()
    for method in ("randomized", "gram"):
        source = np.load(folder / f"{method}.npy", mmap_mode="r")
        checkpoint = folder / "state" if method == "randomized" else None
        space = streaming.fit(source, 5, method, block=16, checkpoint=checkpoint)
        subspace.save(folder / f"{method}-{me}.safetensors", space)
        if checkpoint is not None:  # both read what process 0 wrote
            again = streaming.fit(source, 5, method, block=16, checkpoint=checkpoint)
            np.testing.assert_array_equal(again.components, space.components)
    bad = np.load(folder / "bad.npy", mmap_mode="r")
    for method in ("randomized", "gram"):
        try:
            streaming.fit(bad, 5, method, block=16)
        except (ValueError, RuntimeError) as error:
            print(error, flush=True)
        else:
            raise AssertionError("a row that is not finite was accepted")
    distributed.barrier("done")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    distributed.initialize(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    main(pathlib.Path(sys.argv[1]))
