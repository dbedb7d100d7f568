"""Whether the person in the output is still the same person: distances of face embeddings."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from visa.artifacts.media import to_uint8


class FaceIdentity:
    """dlib's 128-dimensional face embedding (extra `identity`).

    Distances of one person are 0.2-0.5, of two people 0.6-1.0 (its authors' threshold is 0.6).

    Raises ValueError, with the command that installs it, where the extra is missing.
    """

    def __init__(self) -> None:
        for package, wheel in (("dlib", "dlib-bin"), ("face_recognition_models", "face-recognition-models")):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"identity needs {wheel}: pip install '.[identity]'")
        import dlib

        # Located without importing: the package's own __init__ needs pkg_resources, which new setuptools lack.
        spec = importlib.util.find_spec("face_recognition_models")
        assert spec is not None
        assert spec.origin is not None
        models = Path(spec.origin).parent / "models"
        self._detector = dlib.get_frontal_face_detector()
        self._predictor = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self._embedder = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(self, frame: Tensor) -> np.ndarray | None:
        """Embedding [128] of the largest face in a frame [3, H, W] in [0, 1]; None where none is found."""
        picture = np.ascontiguousarray(to_uint8(frame))
        # The detector finds faces of 80 px and more: small pictures are doubled first.
        faces = self._detector(picture, 1 if min(picture.shape[:2]) < 400 else 0)
        if not faces:
            return None
        face = max(faces, key=lambda box: box.area())
        return np.array(self._embedder.compute_face_descriptor(picture, self._predictor(picture, face)))

    def embed_all(self, frames: Tensor) -> list[np.ndarray | None]:
        """`embed` of each of [T, 3, H, W]."""
        return [self.embed(frame) for frame in frames]


def mean_distance(embeddings: Sequence[np.ndarray | None], references: Sequence[np.ndarray | None]) -> float | None:
    """Mean Euclidean distance over the pairs in which both faces were found; None where there is no such pair."""
    pairs = [(a, b) for a, b in zip(embeddings, references, strict=True) if a is not None and b is not None]
    return float(np.mean([np.linalg.norm(a - b) for a, b in pairs])) if pairs else None


def detection_rate(embeddings: Sequence[np.ndarray | None]) -> float:
    """Share of frames with a face, in [0, 1]."""
    return sum(embedding is not None for embedding in embeddings) / len(embeddings)


def identity_distances(
    truth: Tensor, rows: Mapping[str, Tensor], photo: Tensor | None, every: int = 1
) -> dict[str, tuple[dict[str, float | None], str]]:
    """{column: (figure of each row, why it is None or lacks one)}: `identity`, `identity_photo`, `detection_rate`.

    Args:
        truth: [T, 3, H, W] in [0, 1].
        rows: of the same frames.
        photo: [3, H, W] in [0, 1].
        every: read every n-th frame.
    """
    try:
        faces = FaceIdentity()
    except ValueError as error:
        return {column: ({}, str(error)) for column in ("identity", "identity_photo", "detection_rate")}
    true = faces.embed_all(truth[::every])
    known = faces.embed(photo) if photo is not None else None
    found = {name: faces.embed_all(video[::every]) for name, video in rows.items()}
    no_photo = "no photo given" if photo is None else "no face found in the photo or the frames"
    return {
        "identity": (
            {name: mean_distance(embeddings, true) for name, embeddings in found.items()},
            f"no face found in both of {len(true)} frame pairs",
        ),
        "identity_photo": (
            {name: mean_distance(embeddings, [known] * len(embeddings)) for name, embeddings in found.items()},
            no_photo,
        ),
        "detection_rate": ({name: detection_rate(embeddings) for name, embeddings in found.items()}, ""),
    }
