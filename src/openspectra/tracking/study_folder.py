"""A study's results as tracking sees them, brought into MLflow once or for as long as somebody computes them."""

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from openspectra.artifacts import MANIFEST, open_artifact
from openspectra.errors import DamagedArtifactError, OpenSpectraError
from openspectra.reporting.plan import plan_of
from openspectra.study import Study, load_study
from openspectra.tracking.live import Training, trainings_of
from openspectra.tracking.sync import track

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_BETWEEN_ARTIFACTS = 60.0
"""Between looks at all artifacts, which take the longer the more there are: seconds where there are hundreds."""
SECONDS_AFTER_FAILURE = 60.0


@dataclass(frozen=True)
class StudyFolder:
    """What stands of a study below `results/<name>` and `reports/<name>` of the present folder."""

    name: str
    study: Study

    @property
    def artifacts(self) -> list[Path]:
        """The folders of its finished artifacts, parts and jobs left out."""
        report = Path("reports", self.name)
        made = plan_of(self.study).made(Path("results", self.name))
        return made + ([report] if (report / MANIFEST).is_file() else [])

    @property
    def trainings(self) -> list[Training]:
        """Its trainings, finished or not."""
        return [each for model in self.study.pretrained for each in trainings_of(Path("results", self.name, model))]

    def sync(self, uri: str | None) -> dict[str, str]:
        """Bring MLflow up to date; return the run id of each artifact. Raises `OpenSpectraError` where it cannot."""
        return track([open_artifact(path) for path in self.artifacts], self.name, uri, self.trainings)

    def watch(self, uri: str | None, ended: threading.Event) -> None:
        """Bring MLflow up to date again and again while trainings go on, until `ended`. A store that is down is waited for."""
        seen, due = (None, None), 0.0
        while True:
            is_last = ended.wait(SECONDS_BETWEEN_LOOKS)
            try:
                trainings, manifests = self._state()
                if trainings and manifests != seen[1] and (is_last or time.monotonic() >= due):
                    self.sync(uri)
                    seen, due = (trainings, manifests), time.monotonic() + SECONDS_BETWEEN_ARTIFACTS
                elif trainings and trainings != seen[0]:
                    track([], self.name, uri, self.trainings)
                    seen = trainings, seen[1]
            except (DamagedArtifactError, FileNotFoundError) as error:  # made anew just now, or seen to by the workflow
                logger.info("%s", error)
            except OpenSpectraError as error:
                logger.warning("%s", error)
                is_last = is_last or ended.wait(SECONDS_AFTER_FAILURE)
            if is_last:
                return

    def _state(self) -> tuple[list, list]:
        """Return what changes whenever there is something to send: of trainings that have begun, of artifacts."""
        trainings = [(each.folder, each.path.stat().st_size, each.is_alive()) for each in self.trainings]
        return trainings, [(path, (path / MANIFEST).stat().st_mtime_ns) for path in self.artifacts]


def study_folder(name: str) -> StudyFolder:
    """Return the folder of a study. Raises `ConfigError` where its file is missing or wrong."""
    return StudyFolder(name, load_study(Path("studies", f"{name}.yaml")))
