"""A weight space of your own LoRA files: import, fit, sample, edit, export (weights2weights).

Paper:    Dravid et al., "Interpreting the Weight Space of Customized Diffusion Models", 2024.
Command:  python launch.py --config=configs/w2w_adapters.py --config.folder=my_adapters \\
            --config.edit.labels=labels.csv --config.export.format=kohya
Cost:     dominated by reading the files; no network is evaluated.
Expected: the smoke variant plants five directions and finds them within 7 degrees.
Variants: smoke (makes its own adapters; CI).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "w2w_adapters"
    config.experiment = "w2w.adapters.experiment"
    config.seed = 0
    config.folder = ""  # of PEFT folders, diffusers, kohya or original weights2weights files
    # Adapters that are made instead of imported, for trying this out; 0: none.
    config.planted = ConfigDict(dict(models=0, factors=5, noise=0.4, alpha=27.0, uneven=True))
    config.adapter = ConfigDict(
        dict(
            rank=0,  # 0: the files' own
            alpha=0.0,  # 0: the files' own
            missing_alpha="",  # "": refuse files that do not state it; "fold" or a number
            reduce="",  # "svd": bring files of other ranks to the rank
            canonical=False,  # True for adapters that were not trained from one initial value
            text_encoder="refuse",  # "drop": leave out what adapts a text encoder
        )
    )
    config.bank = ConfigDict(dict(dtype="float32", workers=8))
    # 0: all. Methods: gram, svd, randomized, or streaming for banks larger than memory.
    config.space = ConfigDict(dict(components=0, method="gram"))
    config.sample = ConfigDict(dict(count=8, factor=1.0))
    config.edit = ConfigDict(
        dict(
            labels="",  # CSV: name, attribute, attribute, ...; "": no edits
            attributes=(),  # (): all columns
            components=0,  # that directions are fitted on; 0: all
            models=("mean",),  # names of adapters, sample0, sample1, ..., or mean
            strengths=(-1.0, 1.0),  # 1: the largest projection of an adapter
        )
    )
    config.export = ConfigDict(dict(format="kohya", fold=False, dtype="float32"))
    if variant == "smoke":
        config.planted.models = 60
        config.sample.count = 4
        config.edit.components = 5
        config.edit.models = ("mean", "person0", "sample0")
    elif variant:
        raise ValueError(f"configs/w2w_adapters.py has no variant {variant!r}; it has: smoke")
    return config
