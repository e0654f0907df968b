"""Residual Chebyshev networks on the cortex: planted atrophy, cross-validation, maps.

Paper:    Azcona et al., "Interpretation of Brain Morphology in Association to Alzheimer's Disease
          Dementia Classification Using Graph Convolutional Networks on Triangulated Meshes",
          ShapeMI 2020.
Command:  python launch.py --config=configs/meshgcn.py
          python launch.py --config=configs/meshgcn.py:paper --config.data.folder=SUBJECTS_DIR
              --config.data.table=diagnoses.csv
Cost and numbers: meshgcn/README.md.
Variants: smoke (CI); for one accelerator large (25 trials of 1,200 synthetic people, more
          effects) and paper (25 trials on fsaverage5, three networks).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "meshgcn"
    config.experiment = "meshgcn.experiment"
    config.seed = 0
    config.mesh = ConfigDict(dict(template="fsaverage4", atlas="desikan", subcortex=False))
    config.operators = ConfigDict(
        dict(
            normalisation="symmetric",
            largest=2.0,  # bound of the Laplacian's spectrum
            method="auto",  # nested where the mesh is, collapses elsewhere
            pool="mean",
            route="gather",
            spiral_length=9,
        )
    )
    config.networks = ("residual",)  # the first one is explained
    config.network = ConfigDict(
        dict(
            widths=(8,),
            terms=3,
            stem=8,  # one convolution on the finest level, blocks on coarser ones
            hidden=32,
            head="regions",
            pooling="mean",
            preact=True,
            residual=True,
            norm="batch",
            dropout=0.5,
        )
    )
    config.train = ConfigDict(
        dict(
            epochs=40,
            batch=32,
            learning_rate=5e-3,
            weight_decay=0.3,
            ema=0.98,
            noise=0.0,
            eval_batch=64,
        )
    )
    config.perceptron = ConfigDict(dict(hidden=(64,), dropout=0.5))
    config.perceptron.train = config.train.copy_and_resolve_references()
    config.cohort = ConfigDict(
        dict(
            plants=("additive", "either", "xor"),
            effects=(0.1, 0.2),
            features="thickness",
            people=dict(
                subjects=400,
                repeated=0.25,
                smooth_sd=0.12,
                global_sd=0.05,
                noise=0.1,
                scales=(2, 8, 32),
                severity_sd=0.25,
                region_a=("entorhinal", "parahippocampal", "fusiform", "inferiortemporal"),
                region_b=("precuneus", "isthmuscingulate", "inferiorparietal"),
                falloff=1,
            ),
        )
    )
    config.data = ConfigDict(
        dict(
            folder="",  # FreeSurfer's SUBJECTS_DIR, instead of synthetic subjects
            table="",  # CSV with the columns below
            patterns=("{scan}/surf/{hemi}.thickness.fwhm10.fsaverage.mgh",),
            bodies=(),  # with mesh.subcortex: as many, "{scan}/shape/{structure}.thickness"
            classes=("CN", "AD"),
            # split: "" for Monte Carlo, else the column with train, validation or test.
            columns=dict(subject="subject", scan="scan", diagnosis="diagnosis", split=""),
        )
    )
    config.trials = ConfigDict(dict(count=8, fractions=(0.6, 0.15, 0.25), at_once=1))
    # The first level is drawn and exported.
    config.maps = ConfigDict(dict(plant="additive", effect=0.2, seeds=5, levels=(1, 0)))
    config.quick_compile = variant == "smoke"
    if variant == "smoke":
        config.update(_SMOKE)
    elif variant == "large":
        config.update(_LARGE)
    elif variant == "paper":
        config.update(_PAPER)
    elif variant:
        raise ValueError(
            f"configs/meshgcn.py has no variant {variant!r}; it has: smoke, large, paper"
        )
    return config


_SMOKE = dict(
    mesh=dict(template="fsaverage3"),
    network=dict(widths=(4,), terms=2, stem=4, hidden=4),
    train=dict(epochs=2, batch=8),
    perceptron=dict(hidden=(4,), train=dict(epochs=2, batch=8)),
    cohort=dict(plants=("additive",), effects=(0.4,), people=dict(subjects=40)),
    trials=dict(count=1),
    maps=dict(seeds=1, levels=(1, 0)),
)
_LARGE = dict(
    network=dict(widths=(16,), stem=16, hidden=64),
    train=dict(epochs=15),
    perceptron=dict(train=dict(epochs=15)),
    cohort=dict(effects=(0.05, 0.1, 0.15, 0.2), people=dict(subjects=1200)),
    trials=dict(count=25, at_once=25),
)
_PAPER = dict(
    mesh=dict(template="fsaverage5"),
    networks=("residual", "plain", "spiral"),
    network=dict(
        widths=(16, 32, 32, 64), stem=0, head="flatten", preact=False, dropout=0.3
    ),
    train=dict(epochs=60),
    trials=dict(count=25, at_once=5),
)
