"""medseg: segmenting, detecting and classifying in medical images, from a folder of scans to masks and a reason why."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("medseg")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
