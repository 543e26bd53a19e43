"""When a run chooses its runtime, and what is written of that: shared by the commands that predict folders.

A choice of ``runtime=auto`` is made at the first scan that was read, noted in the manifest, and kept when the run goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from medseg.export.manifest import Manifest
from medseg.inference.predictor import Predictor
from medseg.volume import Geometry

logger = logging.getLogger(__name__)


class RuntimeChoice:
    """The runtimes of ``predictors``, as they stand in ``manifest`` or are chosen for what is ahead.

    Args:
        predictors: by name of the model.
        manifest: with what an earlier run noted, where this one goes on with it.

    Raises:
        MedsegError: a runtime that was chosen earlier cannot be had any more.
    """

    def __init__(self, predictors: Mapping[str, Predictor], manifest: Manifest) -> None:
        self._manifest = manifest
        self._open: dict[str, Predictor] = {}
        for name, predictor in predictors.items():
            if predictor.runtime.name != "auto":
                manifest.runtimes[name] = predictor.runtime_description()
            elif manifest.cases and (noted := manifest.runtimes.get(name, {}).get("runtime")):
                predictor.keep_runtime(noted)
            else:
                self._open[name] = predictor

    def settle(self, scan: Geometry, cases: int) -> None:
        """Choose what is open, now that the grid of a scan is known and ``cases`` like it are ahead."""
        for name, predictor in list(self._open.items()):
            windows = predictor.windows_of(scan)
            if windows == 0:
                continue
            predictor.settle_runtime(windows * cases)
            found = predictor.runtime_description()
            self._manifest.runtimes[name] = found
            del self._open[name]
            logger.info("runtime=auto: %s (%s)", found["runtime"], found["why"])
