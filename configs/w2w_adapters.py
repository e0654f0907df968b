"""A weight space of your own LoRA files: (train,) import, fit, sample, invert, edit, export, draw.

Paper:    Dravid et al., "Interpreting the Weight Space of Customized Diffusion Models", 2024
          (weights2weights).
Command:  python launch.py --config=configs/w2w_adapters.py --config.folder=my_adapters \\
            --config.edit.labels=labels.csv --config.export.format=kohya
          Adapters were added to the folder: the space of the earlier run takes them in,
            --workdir=run2 --config.space.update_from=run
          With the base model, photographs become adapters, too, and models are drawn:
            --config.base.pipeline=stable-diffusion-v1-5 --config.invert.images=photographs
          Without adapters, they are trained first, one for each sub-folder of photographs:
            --config.base.pipeline=stable-diffusion-v1-5 --config.train.images=people
Cost:     dominated by reading the files; without a pipeline no network is evaluated. Training takes
          800 steps of two images for each person, made for accelerators.
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
    config.space = ConfigDict(
        dict(
            components=0,  # 0: all; of an update of a space that has not all, as many as it has
            method="gram",  # svd, randomized, or streaming for banks larger than memory
            update_from="",  # workdir of an earlier run, whose space takes in the added adapters
        )
    )
    config.sample = ConfigDict(dict(count=8, factor=1.0))
    config.edit = ConfigDict(
        dict(
            labels="",  # CSV: name, attribute, attribute, ...; "": no edits
            attributes=(),  # (): all columns
            components=0,  # that directions are fitted on; 0: all
            models=("mean",),  # names of adapters, mean, sample0, ..., inverted-<person>
            strengths=(-1.0, 1.0),  # 1: the largest projection of an adapter
        )
    )
    # The Stable Diffusion model that the adapters are of; for training, inversion and drawing.
    config.base = ConfigDict(
        dict(
            pipeline="",  # its folder in diffusers' layout, or owner/name of a hub repository
            size=0,  # pixels of a side; 0: the model's
            dtype="float32",  # of the networks; bfloat16 on accelerators
            remat=False,  # gradient checkpointing
        )
    )
    # Photographs to adapters by DreamBooth-LoRA, instead of a folder of adapters; the defaults are
    # the recipe of the published ones.
    config.train = ConfigDict(
        dict(
            images="",  # folder of one sub-folder for each person; "": adapters are imported
            prompt="sks person",
            class_prompt="person",
            class_images="",  # folder of pictures of the class; "": the base model draws them
            class_count=200,  # of those, with steps and guidance:
            class_steps=50,
            class_guidance=7.5,
            class_at_once=4,
            rank=1,
            alpha=27.0,
            targets=(r"(.*\.)?attn[12]\.to_[qv]",),  # regular expressions over names of modules
            steps=800,
            batch=1,  # noisy images of each person in a step
            class_batch=1,  # and of the class; 0: no prior preservation
            prior_weight=1.0,
            learning_rate=1e-4,
            weight_decay=1e-2,
            clip=1.0,  # largest norm of a person's gradient
            views=8,  # random crops of each photograph that is not of the model's proportions
            zoom=1.0,  # smallest crop, as a share of the largest; below 1 also for square ones
            mirror=False,
            at_once=4,  # people on each device at once; 0: all
            save_every=100,  # steps
            draws=16,  # of noise and time, that adapters and base model are compared on
        )
    )
    # Photographs of people to models of the space.
    config.invert = ConfigDict(
        dict(
            images="",  # folder of one person's photographs, or of a sub-folder for each person
            masks="",  # folder of masks named as the photographs, white counts; "": none
            prompt="sks person",
            views=8,  # random crops of each photograph that is not of the model's proportions
            zoom=1.0,  # smallest crop, as a share of the largest; below 1 also for square ones
            mirror=False,
            components=0,  # 0: all
            component_dtype="float32",  # bfloat16: half the memory
            units="raw",  # of learning_rate: raw, or deviations of each component
            steps=400,
            batch=1,  # noisy images of each person in a step
            learning_rate=0.1,
            weight_decay=1e-10,
            at_once=0,  # people on each device at once; 0: all
            save_every=50,  # steps
            draws=16,  # of noise and time, that inversion and mean model are compared on
        )
    )
    # Images of all models, if there is a pipeline.
    config.draw = ConfigDict(
        dict(
            prompts=("sks person",),
            negative="low quality, blurry, unfinished",
            images=2,  # of each prompt and model
            steps=50,
            guidance=3.0,
            at_once=4,  # models in one batch
            thumbnail=256,  # pixels a side in the report; images/ has them whole
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
