"""weights2weights on real faces: build a space of face models, then sample, edit and invert in it.

Paper:    Dravid et al., "Interpreting the Weight Space of Customized Diffusion Models", 2024.
Command:  python launch.py --config=configs/w2w.py
Cost and numbers: w2w/README.md.
Variants: smoke (CI), gpu (more models, more steps, for one accelerator).
"""

from ml_collections import ConfigDict

from configs import face_base


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "w2w"
    config.experiment = "w2w.experiment"
    config.seed = 0
    config.base = ConfigDict(
        dict(train=False, path="", class_images=64)  # path "": the weights in w2w/weights
    )
    config.base.recipe = face_base.get_config("smoke" if variant == "smoke" else "")
    config.prompts = ConfigDict(dict(instance="sks person", class_="person"))
    config.sample = ConfigDict(dict(steps=10, guidance=2.0, shift=1.5))
    config.lora = ConfigDict(dict(rank=1, alpha=1.0))
    config.faces = ConfigDict(
        dict(image_size=64, celeba=999, olivetti=40, models=200, frames=10)
    )
    config.faces.jitter = config.base.recipe.data.jitter.copy_and_resolve_references()
    config.adapter = ConfigDict(
        dict(
            num_steps=60,
            batch=4,
            class_batch=1,
            learning_rate=0.03,
            prior_weight=0.1,
            weight_decay=0.0,
            ema_decay=0.95,
            time_mean=0.3,
            time_std=1.0,
            group=10,
        )
    )
    # The adapters without a space that inversion is compared with: as many steps and images.
    config.unconstrained = config.adapter.copy_and_resolve_references()
    config.unconstrained.num_steps = 100
    config.space = ConfigDict(
        dict(components=199, counts=(20, 40, 80, 160), reconstruction_ks=(10, 19))
    )
    config.inversion = ConfigDict(
        dict(num_steps=100, batch=4, learning_rate=0.2, prior=0.0, time_mean=0.3, time_std=1.0)
    )
    config.invert = ConfigDict(
        dict(split="test", people=10, counts=(50, 100))
    )
    config.portraits = ConfigDict(dict(images=6))
    config.new = ConfigDict(dict(samples=32, sample_images=2, factor=1.0, components=60))
    config.edit = ConfigDict(
        dict(
            components=60,
            strengths=(-2.0, -1.0, 0.0, 1.0, 2.0),
            images=3,
            injection=1.0,
            prompts=dict(male=("man", "woman"), smiling=("smiling person",), age=("old person",)),
        )
    )
    config.quick_compile = variant == "smoke"
    config.short_compile = True  # each program runs for a minute or two
    if variant == "smoke":
        config.update(_SMOKE)
    elif variant == "gpu":
        config.update(_GPU)
    elif variant:
        raise ValueError(f"configs/w2w.py has no variant {variant!r}; it has: smoke, gpu")
    return config


_SMOKE = dict(
    base=dict(class_images=4),
    sample=dict(steps=2),
    faces=dict(celeba=20, olivetti=10, models=12, frames=5),
    adapter=dict(num_steps=2, group=3, batch=2),
    unconstrained=dict(num_steps=2, group=3, batch=2),
    space=dict(components=11, counts=(4, 8), reconstruction_ks=(2, 3)),
    inversion=dict(num_steps=2, batch=2),
    invert=dict(people=3, counts=(6,)),
    portraits=dict(images=2),
    new=dict(samples=3, sample_images=2, components=4),
    edit=dict(components=4, strengths=(-1.0, 0.0, 1.0), images=2),
)
_GPU = dict(
    faces=dict(models=1024),
    adapter=dict(num_steps=200, batch=6, class_batch=2, group=128),
    unconstrained=dict(num_steps=300, batch=6, class_batch=2, group=128),
    space=dict(components=1000, counts=(30, 100, 300, 800), reconstruction_ks=(10, 29)),
    inversion=dict(num_steps=300, batch=8),
    invert=dict(counts=(30, 100, 300)),
    portraits=dict(images=16),
    new=dict(samples=128, components=200),
    edit=dict(components=200, images=8),
)
