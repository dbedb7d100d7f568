"""Which person of a picture is tracked: of several, one is followed, and the others are covered for the detectors."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Boxes = NDArray[np.float32]
COVER = 128  # grey, where others are
LEAST_SHARE = 0.35  # a face smaller than that share of the chosen one's is part of the background


def strip_of(faces: Boxes, chosen: int, width: int) -> tuple[int, int]:
    """Columns, first and behind the last, that belong to one person of a picture.

    Between two people the border divides the way from face to face as the widths of the faces are.

    Args:
        faces: `[n,4]` left, top, width and height in px.
        chosen: index of the person.
        width: of the picture.
    """
    centres, widths = faces[:, 0] + faces[:, 2] / 2, faces[:, 2]
    left, right = 0.0, float(width)
    for other in range(len(faces)):
        way = float(centres[other] - centres[chosen])
        # One above the other, or one face found twice: no upright line parts them.
        if other == chosen or abs(way) < (widths[other] + widths[chosen]) / 2:
            continue
        if widths[other] < LEAST_SHARE * widths[chosen]:
            continue
        border = float(centres[chosen]) + way * float(widths[chosen] / (widths[chosen] + widths[other]))
        left, right = (max(left, border), right) if way < 0 else (left, min(right, border))
    return round(left), round(right)


class People:
    """Follows one person through the frames of a file, from the first frame that shows a face.

    Args:
        person: which, from 1 on: the people of that first frame by the size of their faces, the largest first.
        name: of the file, for messages.
    """

    def __init__(self, mediapipe: ModuleType, person: int, name: str) -> None:
        if person < 1:
            raise ValueError(f"--person {person}: give 1 for the person with the largest face, 2 for the next")
        self.person, self.name, self.most = person, name, 0
        self.place: NDArray[np.float32] | None = None  # of the followed face's middle
        self.detector = mediapipe.solutions.face_detection.FaceDetection(
            model_selection=1, min_detection_confidence=0.5
        )

    def close(self) -> None:
        """Release the graph."""
        self.detector.close()

    def forget(self) -> None:
        """At a cut people are elsewhere: the choice is made anew."""
        self.place = None

    def only_chosen(self, frame: Frame) -> Frame:
        """The frame `[H,W,3]` with everybody else under grey; the same one where nobody else is.

        Raises:
            ValueError: the first frame with a face shows fewer people than `person`.
        """
        faces = _boxes(self.detector.process(frame), frame.shape[1], frame.shape[0])
        return self.cover(frame, faces)

    def cover(self, frame: Frame, faces: Boxes) -> Frame:
        """As `only_chosen`, of faces `[n,4]` that have been found."""
        if not len(faces):
            return frame
        middles = faces[:, :2] + faces[:, 2:] / 2
        if self.place is None:
            chosen = self._choose(faces)
        else:
            chosen = int(np.linalg.norm(middles - self.place, axis=1).argmin())
        self.place = middles[chosen]
        left, right = strip_of(faces, chosen, frame.shape[1])
        if (left, right) == (0, frame.shape[1]):
            return frame
        self._tell(len(faces))
        covered = np.full_like(frame, COVER)
        covered[:, left:right] = frame[:, left:right]
        return covered

    def _choose(self, faces: Boxes) -> int:
        order = np.argsort(-faces[:, 2], kind="stable")
        if self.person > len(order):
            raise ValueError(f"{self.name}: --person {self.person}: its first frame with a face shows {len(order)}")
        return int(order[self.person - 1])

    def _tell(self, count: int) -> None:
        if not self.most:
            which = "the largest face" if self.person == 1 else f"the face that is number {self.person} in size"
            warnings.warn(
                f"{self.name} shows {count} people: the one with {which} is tracked; choose with --person N",
                stacklevel=2,
            )
        self.most = max(self.most, count)


def _boxes(found: Any, width: int, height: int) -> Boxes:
    """Boxes `[n,4]` in px of MediaPipe's detections."""
    rows = [one.location_data.relative_bounding_box for one in found.detections or ()]
    shares = np.array([(r.xmin, r.ymin, r.width, r.height) for r in rows], np.float32).reshape(-1, 4)
    return shares * np.array([width, height, width, height], np.float32)
