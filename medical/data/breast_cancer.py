"""Wisconsin's diagnostic breast cancer table: 569 patients, 30 measures of cell nuclei, diagnosis.

Street, Wolberg and Mangasarian, "Nuclear Feature Extraction for Breast Tumor Diagnosis", SPIE 1993;
the copy of scikit-learn (from UCI's repository, CC BY 4.0). Mean, standard error and worst value of
ten measures of the nuclei in one image of a fine needle aspirate.
"""

import numpy as np

from medical.data.variables import Patients

LEVELS = ("benign", "malignant")


def read() -> Patients:
    """All patients in the order of the table; nothing is absent."""
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    columns = {str(name): table.data[:, i] for i, name in enumerate(table.feature_names)}
    malignant = np.asarray(table.target_names)[table.target] == "malignant"
    return Patients(columns, malignant.astype(np.int32), LEVELS)
