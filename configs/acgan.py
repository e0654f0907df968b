"""Is the class head of an AC-GAN a better classifier than a CNN when labelled images are few?

Paper:    Dravid, Schiffers, Wu, Cossairt, Katsaggelos, "Investigating the Potential of
          Auxiliary-Classifier GANs for Image Classification in Low Data Regimes", ICASSP 2022.
Command:  python launch.py --config=configs/acgan.py
Cost and numbers: medical/README.md.
Variants: smoke (CI), mnist, digits (MNIST, 20 of each class, five seeds: the acceptance check),
          long (ten times the steps, eight seeds, GANs augmented, too: for an accelerator),
          paper (published widths, batch, optimiser and number of steps, for an accelerator; the
          published subset sizes are not known, these are 10 to 1000), cifar and xray (the same for
          the published networks of 32 and 128 pixels; --config.data.source=... is yours).
Own data: --config.data.source=FOLDER/table.csv (columns file, patient, label; split by patient), a
          .npz of MedMNIST's layout, or the folder of CIFAR-10's binary version; and
          --config.data.size, with as many --config.net.generator as double 4 to it.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "acgan"
    config.experiment = "medical.acgan.experiment"
    config.seed = 0  # of the split; trials have their own
    config.per_class = (5, 20, 100)
    config.seeds = (0, 1, 2)
    config.methods = ("cnn", "cnn_augmented", "acgan", "wacgan_gp", "wacgan_gpt", "cnn_samples")
    config.population = "vmap"  # all trials at once; or map, one after another: less memory
    config.samples = 32  # of each class and trial, for diversity and pictures
    config.data = ConfigDict(
        dict(source="fashion", size=28, seed=0, validation_per_class=50, test_per_class=200)
    )
    config.net = ConfigDict(
        # trunk: or alexnet, with `dense` units; generator: channels from 4 pixels up, (): those of
        # the trunk in reverse
        dict(trunk="dcgan", widths=(16, 32, 64), generator=(), dense=256, latent=64, norm="batch")
    )
    config.recipe = ConfigDict(
        # source, fake_class: weights in the discriminator, of the source terms and of the class
        # loss on generated images; 1 as published
        dict(
            learning_rate=5e-4, source=0.1, fake_class=0.0, penalty=10.0, double_softmax=False,
            real_statistics=True,
        )
    )
    config.schedule = ConfigDict(
        dict(num_steps=400, eval_every=50, batch_size=50, shift=2, flip=True)
    )
    config.quick_compile = variant == "smoke"
    if variant in _CHANGES:
        config.update(_CHANGES[variant])
    elif variant:
        known = ", ".join(_CHANGES)
        raise ValueError(f"configs/acgan.py has no variant {variant!r}; it has: {known}")
    return config


_CHANGES: dict[str, dict] = {
    "smoke": dict(
        methods=("cnn", "acgan", "wacgan_gpt"),
        per_class=(2, 4),
        seeds=(0, 1),
        samples=4,
        data=dict(validation_per_class=2, test_per_class=4),
        net=dict(widths=(4, 4, 8), latent=8),
        schedule=dict(num_steps=4, eval_every=2, batch_size=8),
    ),
    "mnist": dict(data=dict(source="mnist", test_per_class=150), schedule=dict(flip=False)),
    "digits": dict(
        per_class=(20,),
        seeds=(0, 1, 2, 3, 4),
        methods=("cnn", "acgan", "wacgan_gpt"),
        data=dict(source="mnist", test_per_class=150),
        schedule=dict(num_steps=4000, eval_every=200, flip=False),  # 400 make no generators
    ),
    "long": dict(
        per_class=(5, 10, 20, 50, 100),
        seeds=tuple(range(8)),
        methods=("cnn", "cnn_augmented", "wacgan_gpt_augmented", "acgan_augmented", "wacgan_gpt",
                 "acgan", "cnn_augmented_samples"),
        schedule=dict(num_steps=4000, eval_every=200),
    ),
    "paper": dict(
        per_class=(10, 50, 100, 500, 1000),
        seeds=(0, 1, 2, 3, 4),
        data=dict(validation_per_class=500, test_per_class=0),
        net=dict(widths=(128, 256, 512), latent=100),
        recipe=dict(learning_rate=2e-4, source=1.0, fake_class=1.0, double_softmax=True,
                    real_statistics=False),
        schedule=dict(num_steps=100_000, eval_every=500, batch_size=100),
    ),
}  # fmt: skip
_CHANGES["cifar"] = {
    **_CHANGES["paper"],
    "data": dict(source="cifar-10-batches-bin", size=32, validation_per_class=500,
                 test_per_class=0),
    "net": dict(trunk="alexnet", widths=(64, 192, 384, 256, 256), generator=(512, 256, 128),
                dense=4096, latent=100),
}  # fmt: skip
_CHANGES["xray"] = {
    **_CHANGES["paper"],
    "per_class": (5, 10, 20, 50, 100),
    "data": dict(source="studies.csv", size=128, validation_per_class=50, test_per_class=0),
    "net": dict(widths=(128, 256, 512), generator=(1024, 512, 256, 128, 64), latent=100),
}  # fmt: skip
