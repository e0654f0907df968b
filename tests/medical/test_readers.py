"""DICOM, NIfTI and tables of studies: values, and the errors that bad input gets."""

import gzip
import struct

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from skimage import exposure

from medical.data import contrast, dicom, nifti, pieces, studies


def write_dicom(path, pixels: np.ndarray, **tags) -> None:
    """A minimal uncompressed CR image."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.Dataset()
    data.file_meta = meta
    data.Modality, data.PatientID = "CR", "p1"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


PIXELS = np.array([[0, 100], [200, 300]], np.uint16)


def test_window_and_rescaling(tmp_path):
    # After rescaling the values are -50 ... 550; the window of centre 250 and width 401 is 49.5 to
    # 449.5.
    write_dicom(tmp_path / "a.dcm", PIXELS, RescaleSlope=2, RescaleIntercept=-50,
                WindowCenter=250, WindowWidth=401)
    found = dicom.read(tmp_path / "a.dcm")
    np.testing.assert_allclose(found.image, [[0, 0.25125], [0.75125, 1]], atol=1e-6)
    assert (found.patient, found.modality, found.inverted) == ("p1", "CR", False)
    given = dicom.read(tmp_path / "a.dcm", window=(250.5, 601))
    np.testing.assert_allclose(given.image, [[0, 1 / 3], [2 / 3, 1]], atol=1e-6)


def test_monochrome1_is_inverted(tmp_path):
    tags = {"WindowCenter": ["150.5", "10"], "WindowWidth": ["301", "20"]}
    write_dicom(tmp_path / "a.dcm", PIXELS, **tags)
    write_dicom(tmp_path / "b.dcm", PIXELS, PhotometricInterpretation="MONOCHROME1", **tags)
    plain, inverted = dicom.read(tmp_path / "a.dcm"), dicom.read(tmp_path / "b.dcm")
    np.testing.assert_allclose(plain.image, PIXELS / 300, atol=1e-6)
    np.testing.assert_allclose(inverted.image, 1 - PIXELS / 300, atol=1e-6)
    assert inverted.inverted


def test_windows_of_other_shapes(tmp_path):
    """PS3.3 C.11.2.1.3: exactly linear between centre - width / 2 and centre + width / 2, or an
    S."""
    tags = {"WindowCenter": 150, "WindowWidth": 200}
    write_dicom(tmp_path / "a.dcm", PIXELS, VOILUTFunction="LINEAR_EXACT", **tags)
    np.testing.assert_allclose(dicom.read(tmp_path / "a.dcm").image, [[0, 0.25], [0.75, 1]],
                               atol=1e-6)
    write_dicom(tmp_path / "b.dcm", PIXELS, VOILUTFunction="SIGMOID", **tags)
    expected = 1 / (1 + np.exp(-4 * (PIXELS - 150.0) / 200))
    np.testing.assert_allclose(dicom.read(tmp_path / "b.dcm").image, expected, atol=1e-6)
    write_dicom(tmp_path / "c.dcm", PIXELS, VOILUTFunction="CUBIC", **tags)
    with pytest.raises(dicom.DicomError, match="c.dcm: window of shape 'CUBIC'; known: LINEAR"):
        dicom.read(tmp_path / "c.dcm")
    write_dicom(tmp_path / "d.dcm", PIXELS, VOILUTFunction="SIGMOID", WindowCenter=1, WindowWidth=0)
    with pytest.raises(dicom.DicomError, match="window width 0 is not larger than 0"):
        dicom.read(tmp_path / "d.dcm")


def test_a_table_in_place_of_the_slope(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table.LUTData = np.array([0, 1000, 50, 2000], "<u2").tobytes()
    table.ModalityLUTType = "US"
    write_dicom(tmp_path / "a.dcm", np.array([[0, 1], [2, 3]], np.uint16), WindowCenter=1000.5,
                WindowWidth=2001, ModalityLUTSequence=pydicom.Sequence([table]))
    np.testing.assert_allclose(dicom.read(tmp_path / "a.dcm").image, [[0, 0.5], [0.025, 1]],
                               atol=1e-6)


def test_grey_scales_that_contradict(tmp_path):
    tags = {"WindowCenter": 150.5, "WindowWidth": 301, "PresentationLUTShape": "INVERSE"}
    write_dicom(tmp_path / "a.dcm", PIXELS, **tags)
    with pytest.raises(dicom.DicomError, match="a.dcm: MONOCHROME2 says that large values are br"):
        dicom.read(tmp_path / "a.dcm")
    # As DX images have it: the two say the same.
    write_dicom(tmp_path / "b.dcm", PIXELS, PhotometricInterpretation="MONOCHROME1", **tags)
    np.testing.assert_allclose(dicom.read(tmp_path / "b.dcm").image, 1 - PIXELS / 300, atol=1e-6)


def test_percentiles_where_there_is_no_window(tmp_path):
    pixels = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    write_dicom(tmp_path / "a.dcm", pixels)
    found = dicom.read(tmp_path / "a.dcm").image
    assert found.min() == 0 and found.max() == 1
    assert found[50, 0] == pytest.approx((5000 - 49.995) / 9899.01, abs=1e-4)


def test_bad_dicom_is_named(tmp_path):
    (tmp_path / "text.dcm").write_text("no image")
    with pytest.raises(dicom.DicomError, match="text.dcm: not a DICOM file"):
        dicom.read(tmp_path / "text.dcm")
    with pytest.raises(FileNotFoundError):
        dicom.read(tmp_path / "none.dcm")
    colour = np.zeros((2, 2, 3), np.uint8)
    write_dicom(tmp_path / "c.dcm", colour, PhotometricInterpretation="RGB",
                PlanarConfiguration=0)
    with pytest.raises(dicom.DicomError, match="RGB, expected grey"):
        dicom.read(tmp_path / "c.dcm")
    write_dicom(tmp_path / "short.dcm", PIXELS, Rows=200)
    with pytest.raises(dicom.DicomError, match="cannot be decoded"):
        dicom.read(tmp_path / "short.dcm")
    write_dicom(tmp_path / "flat.dcm", np.full((2, 2), 7, np.uint16))
    with pytest.raises(dicom.DicomError, match="all pixels are equal"):
        dicom.read(tmp_path / "flat.dcm")
    write_dicom(tmp_path / "w.dcm", PIXELS, WindowCenter=5, WindowWidth=1)
    with pytest.raises(dicom.DicomError, match="window width 1"):
        dicom.read(tmp_path / "w.dcm")


@pytest.mark.filterwarnings("ignore")  # pydicom warns of values that break the standard
def test_damaged_dicom_is_named_or_read(tmp_path):
    """Whatever is cut off or changed: finite values, or an error that names the file."""
    write_dicom(tmp_path / "a.dcm", PIXELS, RescaleSlope=2, WindowCenter=250, WindowWidth=401)
    whole, path = (tmp_path / "a.dcm").read_bytes(), tmp_path / "damaged.dcm"
    rng = np.random.default_rng(0)
    causes = set()
    for attempt in range(600):
        damaged = bytearray(whole)
        if attempt % 4 == 0:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            for place in rng.integers(128, len(whole), rng.integers(1, 5)):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            found = dicom.read(path)
        except dicom.DicomError as error:
            assert str(error).startswith(f"{path}: ")
            causes.add(type(error.__cause__).__name__)
        else:
            assert found.image.ndim == 2 and np.isfinite(found.image).all()
    assert len(causes) > 4  # the damage reaches all parts of the reader


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS", "ignore:.*invalid value")
@pytest.mark.parametrize("tags", [{"RescaleSlope": "1e400"}, {"RescaleIntercept": "nan"}])
def test_rescaling_by_what_is_not_finite(tmp_path, tags):
    write_dicom(tmp_path / "a.dcm", PIXELS, WindowCenter=250, WindowWidth=401, **tags)
    with pytest.raises(dicom.DicomError, match="not all finite"):
        dicom.read(tmp_path / "a.dcm")


def nifti_bytes(values: np.ndarray, code: int, slope: float = 1.0, shift: float = 0.0) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, values.ndim, *values.shape, *[1] * (7 - values.ndim))
    struct.pack_into("<h", header, 70, code)
    struct.pack_into("<3f", header, 108, 352.0, slope, shift)
    header[344:348] = b"n+1\0"
    return bytes(header) + values.tobytes(order="F")


def test_nifti_volumes(tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    (tmp_path / "a.nii").write_bytes(nifti_bytes(values, 4))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(nifti_bytes(values, 4, 2.0, 1.0)))
    np.testing.assert_array_equal(nifti.read(tmp_path / "a.nii"), values)
    np.testing.assert_array_equal(nifti.read(tmp_path / "b.nii.gz"), 2 * values + 1)
    (tmp_path / "c.nii").write_bytes(nifti_bytes(values, 4)[:-2])
    with pytest.raises(ValueError, match="too few"):
        nifti.read(tmp_path / "c.nii")
    (tmp_path / "d.nii").write_bytes(b"x" * 400)
    with pytest.raises(ValueError, match="not a single-file"):
        nifti.read(tmp_path / "d.nii")
    (tmp_path / "e.nii.gz").write_bytes(gzip.compress(nifti_bytes(values, 4))[:60])
    with pytest.raises(ValueError, match="damaged gzip"):
        nifti.read(tmp_path / "e.nii.gz")


@pytest.fixture
def folder(tmp_path):
    """Four images of three patients and their table."""
    for i in range(3):
        Image.fromarray(np.full((4, 2), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    write_dicom(tmp_path / "x.dcm", PIXELS, PhotometricInterpretation="MONOCHROME1",
                WindowCenter=150.5, WindowWidth=301)
    rows = ["file,patient,label", "0.png,a,ill", "1.png,a,well", "2.png,b,well", "x.dcm,c,ill"]
    (tmp_path / "studies.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_a_table_of_studies(folder):
    found = studies.read(folder / "studies.csv", 2)
    assert found.images.shape == (4, 2, 2, 1) and found.classes == ("ill", "well")
    np.testing.assert_array_equal(found.labels, [0, 1, 1, 0])
    np.testing.assert_allclose(found.images[2], 2 * 120 / 255 - 1, atol=1e-6)
    np.testing.assert_allclose(found.images[3, :, :, 0], 1 - 2 * PIXELS / 300, atol=1e-6)


def test_damaged_images_are_counted(folder):
    """A second part of a picture whose name is damaged, and a radiograph that was cut off."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "0.png")
    first, part, last = (folder / "0.png").read_bytes().rpartition(b"IDAT")
    assert part in first
    (folder / "0.png").write_bytes(first + b"I\xc1AT" + last)
    (folder / "x.dcm").write_bytes((folder / "x.dcm").read_bytes()[:300])
    found = studies.read(folder / "studies.csv", 2)
    assert found.files == ("1.png", "2.png")
    assert [name for name, _ in found.bad] == ["0.png", "x.dcm"]
    assert found.bad[0][1].startswith("SyntaxError") and "damaged" in found.bad[1][1]


def test_bad_tables_are_named(folder):
    path = folder / "studies.csv"
    with pytest.raises(studies.StudyError, match="no column 'outcome'"):
        studies.read(path, 2, label="outcome")
    with pytest.raises(studies.StudyError, match="line 2: class 'ill' is unknown"):
        studies.read(path, 2, classes=("well", "sick"))
    path.write_text("file,patient,label\n0.png,a,\n")
    with pytest.raises(studies.StudyError, match="line 2: column 'label'"):
        studies.read(path, 2)
    path.write_text("file,patient,label\n0.png,a,nan\n")
    with pytest.raises(studies.StudyError, match="line 2: column 'label' is 'nan'"):
        studies.read(path, 2)
    path.write_text("file,patient,label\n0.png,a,x\nlost.png,b,y\n")
    found = studies.read(path, 2)
    assert len(found.images) == 1 and found.bad[0][0] == "lost.png"
    path.write_text("file,patient,label\nlost.png,b,y\n")
    with pytest.raises(studies.StudyError, match="none of 1 images"):
        studies.read(path, 2)


def test_names_are_read_without_spaces(folder):
    """"a " and "a" are one patient, "ill " and "ill" one class: else a split would leak."""
    path = folder / "studies.csv"
    path.write_text("file,patient,label\n0.png,a ,ill\n 1.png,a,ill \n2.png, b,well\n")
    found = studies.read(path, 2)
    assert found.patients.tolist() == ["a", "a", "b"] and found.classes == ("ill", "well")
    assert found.files == ("0.png", "1.png", "2.png")


def test_files_that_are_no_tables(folder):
    path = folder / "studies.csv"
    path.write_bytes("file,patient,label\n0.png,M\xfcller,ill\n".encode("latin-1"))
    with pytest.raises(studies.StudyError, match="studies.csv: not a CSV table in UTF-8"):
        studies.read(path, 2)
    path.write_text("file,patient,label,label\n0.png,a,x,y\n")
    with pytest.raises(studies.StudyError, match="two columns are called 'label'"):
        studies.read(path, 2)
    path.write_text("file,patient,label\n0.png,a,x\n1.png,b,y\n0.png,b,y\n")
    with pytest.raises(studies.StudyError, match="line 4: file '0.png' belongs to .* 'a' and 'b'"):
        studies.read(path, 2)


def test_contrast(folder):
    random = np.random.default_rng(0)
    dull = (0.4 + 0.1 * random.random((64, 64))).astype(np.float32)
    assert contrast.apply(dull, "none") is dull
    flat = contrast.apply(dull, "equalised")
    assert abs(np.mean(flat < 0.5) - 0.5) < 0.01
    local = contrast.apply(dull, "clahe")
    assert local.dtype == np.float32 and local.min() >= 0 and local.max() <= 1
    np.testing.assert_allclose(local, exposure.equalize_adapthist(dull), atol=1e-6)
    with pytest.raises(ValueError, match="contrast 'sharp'; known: none, equalised, clahe"):
        contrast.apply(dull, "sharp")
    Image.fromarray((255 * dull).astype(np.uint8)).save(folder / "0.png")
    plain, changed = (studies.read(folder / "studies.csv", 64, contrast=name).images[0]
                      for name in ("none", "clahe"))
    assert changed.std() > 2 * plain.std()


def test_a_split_keeps_patients_whole():
    patients = np.repeat(np.arange(50), 4)
    parts = studies.split(patients, {"train": 0.7, "test": 0.3}, np.random.default_rng(0))
    assert len(parts["train"]) == 140 and len(parts["test"]) == 60
    studies.check_disjoint({name: patients[rows] for name, rows in parts.items()})
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(200))
    with pytest.raises(studies.PatientLeakError, match="1 patients are in both 'a' and 'b'"):
        studies.check_disjoint({"a": np.array([1, 2]), "b": np.array([2, 3])})
    with pytest.raises(ValueError, match="sum to 1"):
        studies.split(patients, {"train": 0.7}, np.random.default_rng(0))
    with pytest.raises(ValueError, match="too few"):
        studies.split(patients[:4], {"a": 0.5, "b": 0.5}, np.random.default_rng(0))


def test_images_of_one_patient_are_recognised():
    names = ("16745_2_2.PNG", "16745_2_1.jpg", "16745.png")
    assert {pieces.patient_of(name) for name in names} == {"16745"}
    case = ("covid-19-pneumonia-14-L.png", "covid-19-pneumonia-14-PA.png")
    assert {pieces.patient_of(name) for name in case} == {"covid-19-pneumonia-14"}
    article = "1-s2.0-S1684118220300682-main.pdf-003-b2.png"
    assert pieces.patient_of(article) == pieces.patient_of(article.replace("003-b2", "002-a1"))
    assert pieces.patient_of("f6d980a0.jpg") == "f6d980a0"
