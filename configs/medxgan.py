"""medXGAN: explain a frozen classifier by a generative latent space, on phantoms of known truth.

Paper:    Dravid et al., "medXGAN: Visual Explanations for Medical Classifiers through a Generative
          Latent Space", CVPR workshops 2022.
Command:  python launch.py --config=configs/medxgan.py
Cost and numbers: medical/README.md.
Variants: smoke (CI), hard (faint lesions, noise, distractors), brain (slices of one head),
          folder (your own images: --config.data.table=studies.csv), published (the small networks
          with the published losses: no encoder), brain64 and covid128 (the networks and schedules
          of the two published experiments, for an accelerator), paper (is brain64).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "medxgan"
    config.experiment = "medical.medxgan.experiment"
    config.seeds = (0, 1, 2)
    config.controls = ("shuffled", "shortcut")  # run for the first seed
    config.data = ConfigDict(
        dict(
            table="",  # CSV of your own images, instead of phantoms; paths relative to it
            file="file",  # columns
            patient="patient",
            label="label",
            classes=(),  # two values of the label, negative first; (): as sorted
            part="",  # column that says train, validation or test; empty: split by patient
            fractions=(0.6, 0.15, 0.25),  # of the patients: training, validation, test
            contrast="none",  # of the table's images; or equalised, clahe
        )
    )
    config.phantom = ConfigDict(
        dict(
            source="chest",  # or brain
            size=32,
            amplitude=(0.3, 0.5),
            smallest=4.0,
            noise=0.02,
            distractors=False,
            shortcut=0.0,
            detail=0.5,
        )
    )
    config.counts = ConfigDict(dict(train=3000, validation=400, test=600))
    config.net = ConfigDict(
        dict(
            kind="small",  # or brain64, covid128: networks as published
            size=32,
            channels=1,
            latent=(64, 8),
            classifier=(16, 32, 64),
            generator=(96, 64, 32),
            discriminator=(24, 48, 96),
            vgg=((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),  # covid128: VGG16
            vgg_head=(4096, 4096, 1024, 256, 64),
        )
    )
    config.classifier = ConfigDict(
        dict(num_steps=700, batch_size=64, learning_rate=3e-3, weight_decay=1e-3, shift=2,
             log_every=50, weights="")  # weights: of covid128, torchvision's VGG16
    )  # fmt: skip
    config.objective = ConfigDict(
        dict(
            adversarial=0.2,
            class_weight=1.0,
            class_form="bounded",  # double_softmax (published) or cross_entropy
            temperature=0.0,  # 0: half the spread of the classifier's margins
            reconstruction=50.0,
            kl=2e-3,
            counterfactual=1.0,
            r1=0.5,
            r1_every=8,
            labels="classifier",  # or data (published)
        )
    )
    config.gan = ConfigDict(
        dict(num_steps=1000, batch_size=32, learning_rate=1e-3, discriminator_rate=4e-4,
             ema_decay=0.995, log_every=50, checkpoint_every=500)
    )  # fmt: skip
    config.control_steps = 800
    config.invert = ConfigDict(
        dict(num_steps=150, learning_rate=0.03, restarts=2, pixels=20.0, class_weight=1.0,
             prior=0.05, negative="zero")  # or optimised: a second search, as for brain slices
    )  # fmt: skip
    config.explain = ConfigDict(
        dict(images=64, points=50, samples=250, shown=10, noise=(0.02, 0.05, 0.1), noisy=16)
    )
    config.quick_compile = variant == "smoke"
    if variant in _CHANGES:
        config.update(_CHANGES[variant])
    elif variant:
        known = ", ".join(_CHANGES)
        raise ValueError(f"configs/medxgan.py has no variant {variant!r}; it has: {known}")
    return config


_PUBLISHED = dict(
    adversarial=1.0, class_weight=2.0, class_form="double_softmax", reconstruction=0.0, kl=0.0,
    counterfactual=0.0, r1=0.0, labels="data",
)  # fmt: skip
_PUBLISHED_JUDGE = (16, 32, 64, 128, 256, 512)
_CHANGES: dict[str, dict] = {
    "smoke": dict(
        seeds=(0,),
        controls=(),
        counts=dict(train=64, validation=24, test=48),
        net=dict(latent=(8, 4), classifier=(8, 8), generator=(16, 16, 8), discriminator=(8, 8, 8)),
        classifier=dict(num_steps=4, batch_size=16, log_every=2),
        gan=dict(num_steps=4, batch_size=8, log_every=2, checkpoint_every=0),
        control_steps=2,
        invert=dict(num_steps=3),
        explain=dict(images=4, points=4, samples=20, shown=4, noise=(0.1,), noisy=2),
    ),
    "hard": dict(
        phantom=dict(amplitude=(0.18, 0.32), noise=0.04, distractors=True),
        counts=dict(train=6000),
        net=dict(latent=(256, 8)),  # of wires and squares, too
        classifier=dict(num_steps=1500),
        gan=dict(num_steps=4000),
        control_steps=4000,
        invert=dict(num_steps=400),
    ),
    "brain": dict(
        phantom=dict(source="brain", amplitude=(0.2, 0.35)),
        net=dict(latent=(128, 8)),
        gan=dict(num_steps=3500),
        control_steps=3500,
        invert=dict(num_steps=250),
    ),
    "folder": dict(controls=("shuffled",)),
    "published": dict(
        objective=_PUBLISHED,
        gan=dict(num_steps=5000, learning_rate=2e-4, discriminator_rate=2e-4, ema_decay=0.0),
        invert=dict(num_steps=600, learning_rate=0.01, restarts=4, pixels=4.0, prior=0.0),
    ),
    "brain64": dict(
        phantom=dict(source="brain", size=64),
        net=dict(kind="brain64", size=64, latent=(1000, 100), generator=(384, 256, 192),
                 discriminator=_PUBLISHED_JUDGE),
        classifier=dict(num_steps=4500, batch_size=32, learning_rate=2e-4, weight_decay=0.0),
        objective=_PUBLISHED,
        gan=dict(num_steps=450_000, learning_rate=2e-4, discriminator_rate=2e-4, ema_decay=0.0),
        control_steps=50_000,
        invert=dict(num_steps=5000, learning_rate=0.01, restarts=1, pixels=1.0, class_weight=0.0,
                    prior=0.0, negative="optimised"),
    ),
    "covid128": dict(
        phantom=dict(size=128),
        net=dict(kind="covid128", size=128, latent=(100, 10), generator=(384, 256, 192, 64),
                 discriminator=_PUBLISHED_JUDGE),
        classifier=dict(num_steps=9400, batch_size=32, learning_rate=2e-4, weight_decay=0.0),
        objective={**_PUBLISHED, "class_weight": 1.0},
        gan=dict(num_steps=97_000, learning_rate=2e-4, discriminator_rate=2e-4, ema_decay=0.0),
        control_steps=10_000,
        invert=dict(num_steps=5000, learning_rate=0.01, restarts=1, pixels=4.0, prior=0.0),
    ),
}  # fmt: skip
_CHANGES["paper"] = _CHANGES["brain64"]
