"""Clinical variables: encoding fitted on the training patients, and the levels of SUPPORT2."""

import json

import numpy as np
import pytest

from medical.data import breast_cancer, support, variables
from medical.data.variables import VariableError


@pytest.fixture
def columns():
    return {
        "age": np.array([50.0, 60.0, np.nan, 70.0]),
        "sex": np.array(["f", "m", None, "f"], object),
        "beds": np.array([1, 2, 3, 4]),
    }


def test_numbers_categories_and_absence(columns):
    encoder = variables.fit(columns)
    assert encoder.names == ("age", "age absent", "sex=f", "sex=m", "sex absent", "beds")
    found = encoder.transform(columns)
    deviation = np.std([50, 60, 70])
    np.testing.assert_allclose(found[:, 0], [-10 / deviation, 0, 0, 10 / deviation], rtol=1e-6)
    np.testing.assert_array_equal(found[:, 1], [0, 0, 1, 0])
    np.testing.assert_array_equal(found[:, 2:5], [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(found[:, 5].std(), 1, rtol=1e-6)
    assert found.dtype == np.float32


def test_what_is_fitted_is_kept_for_others(columns):
    encoder = variables.fit(columns, ["beds", "sex"])
    encoder = variables.Encoder.from_plain(json.loads(json.dumps(encoder.to_plain())))
    others = {"beds": np.array([2.5, 1000.0]), "sex": np.array(["m", None], object)}
    found = encoder.transform(others)
    np.testing.assert_allclose(found, [[0, 0, 1, 0], [variables.LIMIT, 0, 0, 1]])


def test_unseen_categories(columns):
    encoder = variables.fit(columns)
    others = {**columns, "sex": np.array(["f", "x", None, "m"], object)}
    with pytest.raises(VariableError, match=r"'sex': category 'x' does not occur"):
        encoder.transform(others)
    np.testing.assert_array_equal(encoder.transform(others, "zeros")[1, 2:5], 0)


@pytest.mark.parametrize(("change", "message"), [
    ({"beds": np.array(["1", "2", "3", "4"])}, "'beds': a number was expected"),
    ({"beds": np.array([1, np.inf, 3, 4])}, "'beds': a value is infinite"),
    ({"age": np.full(4, np.nan)}, "'age': no training patient has a value"),
])
def test_bad_values_are_named(columns, change, message):
    with pytest.raises(VariableError, match=message):
        variables.fit({**columns, **change})


def test_a_missing_variable_is_named(columns):
    encoder = variables.fit(columns)
    with pytest.raises(VariableError, match="no variable 'beds'"):
        encoder.transform({"age": columns["age"], "sex": columns["sex"]})
    with pytest.raises(VariableError, match="no variable 'weight'; there are age, sex, beds"):
        variables.fit(columns, ["weight"])


def test_levels_of_risk():
    days, died = [3, 30, 31, 180, 181, 900, 100], [1, 1, 1, 1, 1, 0, 0]
    found = support.risk_level(np.array(days), np.array(died))
    assert found.tolist() == [2, 2, 1, 1, 0, 0, -1]


def test_support2_is_whole():
    patients = support.read()
    assert len(patients.labels) == 9105
    np.testing.assert_allclose(np.bincount(patients.labels) / 9105, [0.53, 0.20, 0.27], atol=0.01)
    encoded = variables.fit(patients.columns).transform(patients.columns)
    assert np.isfinite(encoded).all() and encoded.shape[1] > len(support.VARIABLES)
    # The variables tell the level: the sickest have the lower blood pressure.
    pressure = patients.columns["num_meanbp"]
    assert np.nanmean(pressure[patients.labels == 2]) < np.nanmean(pressure[patients.labels == 0])


def test_the_breast_cancer_table_is_whole():
    patients = breast_cancer.read()
    assert np.bincount(patients.labels).tolist() == [357, 212]  # benign, malignant
    assert len(patients.columns) == 30 and patients.levels == ("benign", "malignant")
    encoded = variables.fit(patients.columns).transform(patients.columns)
    assert encoded.shape == (569, 30) and np.isfinite(encoded).all()
    radius = patients.columns["mean radius"]  # micrometres; malignant nuclei are larger
    assert radius[patients.labels == 1].mean() > 1.3 * radius[patients.labels == 0].mean()


def test_a_constant_with_rounding_is_a_constant():
    """The deviation of 0.1 three times is 1e-17, not 0: another value must not become thousands."""
    same = np.full(3, 0.1)
    assert 0 < same.std() < 1e-16
    encoder = variables.fit({"dose": same})
    np.testing.assert_allclose(encoder.transform({"dose": same}), 0, atol=1e-6)
    np.testing.assert_allclose(encoder.transform({"dose": same + 0.5}), 0.5, rtol=1e-6)
