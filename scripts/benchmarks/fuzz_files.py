"""Sound files of every format: what `fuzz_mutations` spoils and `fuzz_readers.py` feeds to the readers. Reads nothing itself.

Files are a few kB, so that whatever a reader takes beyond that was claimed, not stored.
"""

from __future__ import annotations

import gzip
import io
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medseg.export.anatomy import AnatomyTable
from medseg.export.dicom_source import Algorithm, dicom_source
from medseg.export.rtstruct import write_rtstruct
from medseg.export.seg import write_segmentation
from medseg.scans import read_geometry
from medseg.scans.find import find
from medseg.structures import LabelTable, Prediction
from tests.annotation_factory import write_seg
from tests.dicom_factory import affine_of, write_series


@dataclass(frozen=True)
class Seed:
    """Sound files, by name below a folder, and the one that is spoilt."""

    files: Mapping[str, bytes]
    target: str


def seeds() -> dict[str, Callable[[], Seed]]:
    """Every kind of file, under ``<format>/<kind>``; each is made when it is asked for."""
    dicom = {
        "classic": {},
        "implicit": {"transfer_syntax": "implicit"},
        "big endian": {"transfer_syntax": "big endian"},
        "deflated": {"transfer_syntax": "deflated"},
        "tilted": {"tilt_degrees": 15.0},
        "RLE": {"transfer_syntax": "RLE"},
        "JPEG lossless": {"transfer_syntax": "JPEG lossless"},
        "JPEG-LS": {"transfer_syntax": "JPEG-LS"},
        "JPEG 2000": {"transfer_syntax": "JPEG 2000"},
        "JPEG baseline": {"transfer_syntax": "JPEG baseline", "bits": 8, "signed": False},
        "JPEG extended": {"transfer_syntax": "JPEG extended", "bits": 12, "signed": False},
        "enhanced CT": {"layout": "enhanced"},
        "enhanced MR, RLE": {"layout": "enhanced", "modality": "MR", "transfer_syntax": "RLE"},
        "NM": {"layout": "enhanced", "modality": "NM", "signed": False},
        "mosaic": {"layout": "mosaic", "modality": "MR"},
        "cine": {"layout": "cine", "modality": "US", "bits": 8, "signed": False},
        "picture": {"layout": "picture", "modality": "CR", "signed": False, "photometric": "MONOCHROME1"},
        "PET": {"modality": "PT"},
        "colour": {"modality": "US", "layout": "picture", "photometric": "RGB", "bits": 8, "signed": False},
        "palette": {"modality": "US", "layout": "picture", "photometric": "PALETTE COLOR", "bits": 8, "signed": False},
    }
    made: dict[str, Callable[[], Seed]] = {
        f"dicom/{name}": (lambda how=how: _series(**how)) for name, how in dicom.items()
    }
    made |= {
        "dicom/SEG binary": lambda: _labels("binary"),
        "dicom/SEG fractional": lambda: _labels("fractional"),
        "dicom/SEG labelmap": lambda: _labels("labelmap"),
        "dicom/RTSTRUCT": lambda: _labels("rtstruct"),
        "nifti/1": lambda: _nifti(nib.Nifti1Image, ".nii"),
        "nifti/1 gzip": lambda: _nifti(nib.Nifti1Image, ".nii.gz"),
        "nifti/1 big endian, scaled, extended": lambda: _nifti(nib.Nifti1Image, ".nii", ">"),
        "nifti/2": lambda: _nifti(nib.Nifti2Image, ".nii"),
        "nifti/2 gzip": lambda: _nifti(nib.Nifti2Image, ".nii.gz"),
        "nifti/pair": _pair,
        **{f"nrrd/{e}": (lambda e=e: _nrrd(e, ".nrrd")) for e in ("raw", "gzip", "bzip2", "ascii")},
        "nrrd/detached": lambda: _nrrd("gzip", ".nhdr"),
        "metaimage/raw": lambda: _metaimage(zipped=False),
        "metaimage/zlib": lambda: _metaimage(zipped=True),
        **{
            f"picture/{ending}": (lambda e=ending: _picture(e))
            for ending in ("png", "jpg", "tif", "16.png", "pages.tif")
        },
    }
    return made


def _volume(shape: tuple[int, ...] = (36, 34, 4)) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 200, shape) // 50 * 50 + np.arange(shape[-1])


def _series(modality: str = "CT", layout: Any = "classic", photometric: str = "MONOCHROME2", **how: Any) -> Seed:
    shape = (36, 34, 1) if layout == "picture" else (36, 34, 4)
    volume = np.stack([_volume(shape)] * 3) if photometric == "RGB" else _volume(shape)
    if photometric == "PALETTE COLOR":
        index = _volume(shape) % 256
        volume = np.stack([index, 255 - index, index * 7 % 256])
    with tempfile.TemporaryDirectory() as folder:
        paths = write_series(
            Path(folder), volume, affine_of(shape), modality=modality, layout=layout, photometric=photometric, **how
        )
        return Seed({path.name: path.read_bytes() for path in paths}, paths[len(paths) // 2].name)


def _labels(kind: str) -> Seed:
    """A series and an object that labels it, which is spoilt."""
    shape = (36, 34, 4)
    mask = np.zeros(shape, np.uint8)
    mask[5:20, 8:30, 1:3], mask[10:14, 12:20, 2], mask[25, 3, 0] = 1, 0, 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(folder, _volume(shape), affine_of(shape))
        (found,) = find(folder).sources
        geometry = read_geometry(found.source)
        source, target = dicom_source(found.source, {}), folder / "labels.dcm"
        prediction = Prediction("fuzz", geometry, LabelTable({1: "liver", 2: "tumour"}), mask=mask)
        how: dict[str, Any] = {"anatomy": AnatomyTable.load(None), "algorithm": Algorithm("fuzz", "1")}
        if kind == "rtstruct":
            write_rtstruct(prediction, source, target, **how)
        elif kind == "fractional":
            images = list(found.source.files)
            write_seg(
                target, {"liver": (mask == 1) * 0.7}, affine_of(shape), images=images, kind=kind, change=_same_uids
            )
        else:
            write_segmentation(prediction, source, target, kind=kind, **how)  # type: ignore[arg-type]
        return Seed({path.name: path.read_bytes() for path in folder.iterdir()}, target.name)


def _same_uids(dataset: Dataset) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, keyword, f"1.2.3.{len(keyword)}")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _nifti(image: Any, ending: str, endian: str = "<") -> Seed:
    made = image(_volume().astype(f"{endian}i2"), affine_of((36, 34, 4)), image.header_class(endianness=endian))
    if endian == ">":
        made.header.set_slope_inter(0.5, -3)
        made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"some words"))
    raw = made.to_bytes()
    return Seed({f"a{ending}": gzip.compress(raw, mtime=0) if ending.endswith("gz") else raw}, f"a{ending}")


def _pair() -> Seed:
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Pair(_volume().astype("<i2"), affine_of((36, 34, 4))), Path(folder) / "a.img")
        return Seed({path.name: path.read_bytes() for path in Path(folder).iterdir()}, "a.hdr")


def _nrrd(encoding: str, ending: str) -> Seed:
    affine = affine_of((36, 34, 4))
    header = {
        "space": "left-posterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": encoding,
    }
    with tempfile.TemporaryDirectory() as folder:
        nrrd.write(str(Path(folder) / f"a{ending}"), _volume().astype("<i2"), header, index_order="F")
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    undated = re.sub(rb"(?m)^#.*\n", b"", files[f"a{ending}"])  # in its comments pynrrd writes when it wrote
    return Seed({**files, f"a{ending}": undated}, f"a{ending}")


def _metaimage(*, zipped: bool) -> Seed:
    raw = _volume().astype("<i2").tobytes(order="F")
    header = f"""ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = {zipped}
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 1 2 3
ElementSpacing = 0.7 0.9 2.5
DimSize = 36 34 4
ElementNumberOfChannels = 1
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
    return Seed({"a.mha": header.encode() + (zlib.compress(raw) if zipped else raw)}, "a.mha")


def _picture(ending: str) -> Seed:
    rows = _volume((36, 34)).astype(np.uint16 if "16" in ending else np.uint8)
    image = Image.fromarray(rows)
    stream = io.BytesIO()
    more = {"save_all": True, "append_images": [image]} if "pages" in ending else {}
    image.save(stream, {"jpg": "JPEG", "tif": "TIFF", "png": "PNG"}[ending.split(".")[-1]], **more)
    return Seed({f"a.{ending}": stream.getvalue()}, f"a.{ending}")
