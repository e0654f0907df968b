"""DeepCOVID-Fuse: risk of a patient from image and clinical variables; either may be absent.

Paper:    Wu, Dravid, Wehbe, Katsaggelos, "DeepCOVID-Fuse: A Multi-Modality Deep Learning Model
          Fusing Chest X-rays and Clinical Variables to Predict COVID-19 Risk Levels",
          Bioengineering 2023.
Command:  python launch.py --config=configs/deepcovid_fuse.py
Cost and numbers: medical/README.md.
Variants: smoke (CI), breast_cancer (569 other patients, benign or malignant), informative (the
          sicker lack their variables more often), paper (the published
          network, size, optimiser and schedule, for an accelerator; --config.trunk=WEIGHTS for the
          first weights of the DenseNet; --config.net.backbone=resnet50 and so on for another
          trunk of DeepCOVID-XR).
Own data: --config.data.table=patients.csv (columns file, patient, level, then clinical variables),
          --config.data.classes=low,intermediate,high.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "deepcovid_fuse"
    config.experiment = "medical.fusion.experiment"
    config.seed = 0  # of the patients and the trunk; networks have their own
    config.seeds = (0, 1, 2, 3, 4)
    config.methods = ("image", "clinical", "fusion", "fusion_dropout", "fusion_learned")
    config.baselines = ("logistic", "boosting", "forest")
    config.fill = "mean"  # what stands for an absent modality; or zeros
    config.trunk = ""  # file of the trunk's weights; empty: pretrained on phantoms
    config.population = "auto"  # vmap or map; auto: map on CPUs
    config.resamples = 500
    config.data = ConfigDict(
        dict(
            source="support2",  # real patients who are given phantoms; or breast_cancer
            table="",  # CSV of your own patients, instead of these
            file="file",  # columns
            patient="patient",
            label="level",
            part="",  # column that says train, validation or test; empty: split by patient
            names=(),  # clinical variables; (): all of them, of a CSV all further columns
            classes=("low", "intermediate", "high"),
            fractions=(0.65, 0.17, 0.18),  # of the patients: training, validation, test
            contrast="none",  # of the table's images; or equalised, clahe
            unseen="error",  # a category that no training patient has; or zeros
            cuts=(30.0, 180.0),  # days: death before is high, intermediate risk (SUPPORT2)
        )
    )
    config.counts = ConfigDict(dict(train=1657, validation=428, test=2000))
    # Opacities of a phantom: binomial, at most `most`, by level.
    config.opacities = ConfigDict(
        dict(most=4, share=(0.15, 0.4, 0.65), amplitude=(0.15, 0.35), noise=0.03)
    )
    # Probability to lack the modality, by level.
    config.absent = ConfigDict(dict(clinical=(0.1, 0.1, 0.1), image=(0.05, 0.05, 0.05)))
    config.net = ConfigDict(
        dict(size=64, channels=1,
             # densenet of these blocks, or as published: densenet121, resnet50, inception_v3,
             # inception_resnet_v2, xception, efficientnet_b2 (then channels=3, and the style of
             # the weights: keras or torch)
             backbone="densenet", style="keras",
             blocks=(3, 4), growth=8, stem=16, momentum=0.9,
             image_width=64, clinical_width=128, width=128)
    )  # fmt: skip
    config.pretrain = ConfigDict(
        dict(count=3000, num_steps=600, batch_size=32, learning_rate=2e-3, weight_decay=1e-3,
             shift=3)
    )  # fmt: skip
    config.train = ConfigDict(
        dict(
            hide=(0.25, 0.25),  # modality dropout: image, clinical
            clinical=dict(epochs=40, learning_rate=5e-3, batch_size=32, lower_after=3,
                          stop_after=8, loss="cross_entropy"),
            head=dict(epochs=40, learning_rate=5e-3, batch_size=16, lower_after=3, stop_after=8,
                      loss="cross_entropy"),
            whole=dict(epochs=6, learning_rate=2e-3, batch_size=16, lower_after=2, stop_after=3,
                       loss="cross_entropy"),
        )
    )  # fmt: skip
    config.explain = ConfigDict(dict(images=3))  # test patients of each level
    config.quick_compile = variant == "smoke"
    if variant in _CHANGES:
        config.update(_CHANGES[variant])
    elif variant:
        known = ", ".join(_CHANGES)
        raise ValueError(f"configs/deepcovid_fuse.py has no variant {variant!r}; it has: {known}")
    return config


_CHANGES: dict[str, dict] = {
    "smoke": dict(
        seeds=(0, 1),
        methods=("image", "clinical", "fusion_learned"),
        baselines=("logistic",),
        resamples=20,
        data=dict(unseen="zeros"),
        counts=dict(train=48, validation=24, test=40),
        net=dict(size=32, blocks=(1, 1), growth=4, stem=8, image_width=8, clinical_width=8,
                 width=8),
        pretrain=dict(count=48, num_steps=2, batch_size=8),
        train=dict(clinical=dict(epochs=2), head=dict(epochs=2), whole=dict(epochs=1)),
        explain=dict(images=1),
    ),
    "breast_cancer": dict(
        data=dict(source="breast_cancer", classes=("benign", "malignant")),
        counts=dict(train=275, validation=84, test=210),
        opacities=dict(share=(0.15, 0.45)),
        absent=dict(clinical=(0.1, 0.1), image=(0.05, 0.05)),
    ),
    "informative": dict(absent=dict(clinical=(0.02, 0.1, 0.3))),
    "paper": dict(
        resamples=2000,
        net=dict(size=224, channels=3, blocks=(6, 12, 24, 16), growth=32, stem=64, momentum=0.99),
        pretrain=dict(num_steps=3000),
        train=dict(
            clinical=dict(epochs=100, learning_rate=2e-4),
            head=dict(epochs=100, learning_rate=2e-4, lower_after=3, stop_after=8),
            whole=dict(epochs=100, learning_rate=2e-5, lower_after=5, stop_after=10,
                       loss="binary_of_softmax"),
        ),
    ),
}  # fmt: skip
