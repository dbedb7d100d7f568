"""One clip's geometry over time, its camera and its track; no renderer is needed for any of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial.transform import Rotation

from visa.networks.body import BodyParams
from visa.tools.make_captures.anatomy import Anatomy, body_colours, eyeball
from visa.tools.make_captures.cloth import Shell, covers, fold_features
from visa.tools.make_captures.hair import Hair, Obstacle
from visa.tools.make_captures.meshes import compact, midpoint_matrix, vertex_normals
from visa.tools.make_captures.motion import FPS, make_motion
from visa.tools.make_captures.person import Person, View

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WARM_UP = 20  # frames of motion before the clip, so that hair and cloth already swing
# The world of the trackers: x right, y up, z towards the camera, which stands in the origin.
TRACK_CAMERA = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclasses.dataclass
class Surface:
    """A mesh of one frame: vertices [N, 3], faces [F, 3], normals [N, 3], linear reflectance [N, 3], gloss."""

    vertices: Floats
    faces: Ints
    normals: Floats
    colours: Floats
    roughness: float
    specular: float


@dataclasses.dataclass
class Camera:
    """Pinhole in the studio's world: `world_to_camera` [4, 4] (OpenCV), `focal` in units of the picture's width."""

    world_to_camera: Floats
    focal: float

    @property
    def position(self) -> Floats:
        """[3] metres."""
        return -self.world_to_camera[:3, :3].T @ self.world_to_camera[:3, 3]

    def project(self, points: Floats) -> Floats:
        """Studio points [..., 3] to the picture's unit square [..., 2] (x right, y down); NaN behind the camera."""
        seen = points @ self.world_to_camera[:3, :3].T + self.world_to_camera[:3, 3]
        depth = np.where(seen[..., 2:] > 1e-6, seen[..., 2:], np.nan)
        return 0.5 + self.focal * seen[..., :2] / depth


def place_camera(view: View, eyes: Floats) -> Camera:
    """A camera that looks at the point `view.drop` below the eyes [3]."""
    target = eyes - np.array([0, view.drop, 0])
    focal = 0.5 / np.tan(np.radians(view.field_of_view) / 2)
    azimuth, elevation = np.radians(view.azimuth), np.radians(view.elevation)
    away = np.array([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)])
    position = target + away * view.width * focal
    right = np.cross(-away, np.array([0, 1.0, 0]))
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(-away, right), -away])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ position
    return Camera(matrix, float(focal))


class Stage:
    """Everything of one person's clip but light: posed body, clothes, hair, camera.

    Args:
        person: whom.
        anatomy: the body model's regions.
        num_frames: T of the clip.
    """

    def __init__(self, person: Person, anatomy: Anatomy, num_frames: int) -> None:
        self.person, self.anatomy, self.num_frames = person, anatomy, num_frames
        body = anatomy.body
        self.motion = make_motion(person, num_frames, body.expression_names, WARM_UP)
        self.betas = np.asarray(person.betas, dtype=np.float32)
        params = BodyParams.from_track({"betas": self.betas, **self.motion})
        with torch.no_grad():
            self.bodies = body(params)[0].double().numpy()
            self.transforms = body.joint_transforms(params).double().numpy()
            self.rest = body.rest_vertices(torch.from_numpy(self.betas), params.expression[0] * 0).double().numpy()
        self.eyes = [np.nonzero(anatomy.is_part(f"eyeball_{side}"))[0] for side in ("left", "right")]
        middle = np.mean([self.bodies[WARM_UP:, ids].mean(axis=(0, 1)) for ids in self.eyes], axis=0)
        self.camera = place_camera(person.view, middle)
        self._dress()
        self._grow_hair()

    def _dress(self) -> None:
        person, anatomy = self.person, self.anatomy
        features = fold_features(self.motion)
        in_sight = self._in_sight()
        self.shells = [
            Shell.build(person, garment, anatomy, in_sight, features.shape[1]) for garment in person.garments
        ]
        self.cloth = [shell.pose(self.bodies, features)[WARM_UP:] for shell in self.shells]
        hidden = anatomy.is_part("skin") & (covers(person.garments[0], anatomy.vertices, 0.025) > 0)
        eyeballs = anatomy.is_part("eyeball_left") | anatomy.is_part("eyeball_right")
        faces = anatomy.faces[(~hidden & in_sight)[anatomy.faces].any(axis=1) & ~eyeballs[anatomy.faces].any(axis=1)]
        fine = (anatomy.head > 0.2)[faces].all(axis=1)
        matrix, head_faces = midpoint_matrix(faces[fine], len(anatomy.vertices), levels=1)
        self.skin_matrix, self.skin_faces = compact(matrix, np.concatenate([faces[~fine], head_faces]))
        corner = sparse.csr_matrix(self.skin_matrix)
        part = anatomy.part[corner.indices[corner.indptr[:-1]]]
        self.skin_colours = body_colours(person, anatomy, self.skin_matrix @ anatomy.vertices, part)

    def _in_sight(self) -> NDArray[np.bool_]:
        """[V] body vertices that come near the picture in some frame; what lies farther off is not built."""
        picture = self.camera.project(self.bodies[WARM_UP :: max(self.num_frames // 6, 1)])
        near = (np.abs(picture - 0.5) < 0.5 + 0.18).all(axis=(-1))
        return near.any(axis=0)

    def _grow_hair(self) -> None:
        anatomy = self.anatomy
        normals = vertex_normals(self.rest, anatomy.faces)
        solid = anatomy.is_part("skin") & (self.rest[:, 1] > -0.45) & (np.abs(self.rest[:, 0]) < 0.35)
        solid_faces = solid.nonzero()[0]
        on_body = anatomy.head[solid_faces] < 0.5
        thickness = max(garment.offset for garment in self.person.garments) + 0.006
        lifted = self.rest[solid_faces] + normals[solid_faces] * np.where(on_body, thickness, 0.0)[:, None]
        self.obstacle_ids, self.obstacle_lift = solid_faces, np.where(on_body, thickness, 0.0)[:, None]
        self.hair = Hair.grow(self.person, anatomy, self.rest, Obstacle(lifted, normals[solid_faces]))
        # Strands rest with the head as it is when the arms hang: the swing starts from the rigid head.
        self.strands = self.hair.swing(self.transforms[:, 15])[WARM_UP:]

    def surfaces(self, frame: int) -> dict[str, Surface]:
        """All meshes of one frame of the clip."""
        body = self.bodies[WARM_UP + frame]
        normals = vertex_normals(body, self.anatomy.faces)
        skin = self.skin_matrix @ body
        found = {"skin": Surface(skin, self.skin_faces, self.skin_matrix @ normals, self.skin_colours, 0.42, 0.3)}
        vertices, faces, colours = eyeball(self.person)
        for side, (ids, joint) in enumerate(zip(self.eyes, (23, 24), strict=True)):
            points = body[ids]
            centre = points.mean(axis=0)
            radius = np.linalg.norm(points - centre, axis=1).mean()
            turned = vertices @ self.transforms[WARM_UP + frame, joint, :3, :3].T
            found[f"eye{side}"] = Surface(centre + radius * turned, faces, turned, colours, 0.06, 1.0)
        for index, (shell, cloth) in enumerate(zip(self.shells, self.cloth, strict=True)):
            normal = vertex_normals(cloth[frame], shell.faces)
            found[f"cloth{index}"] = Surface(cloth[frame], shell.faces, normal, shell.colours, 0.6, 0.0)
        cap = self.hair.cap(body)
        normal = vertex_normals(cap, self.hair.cap_faces)
        found["cap"] = Surface(cap, self.hair.cap_faces, normal, self.hair.cap_colours, 0.6, 0.0)
        strands = self.strands[frame].astype(np.float64)
        if self.person.hair.length > 0.1:
            ids = self.obstacle_ids
            strands = Obstacle(body[ids] + normals[ids] * self.obstacle_lift, normals[ids]).push_out(strands, 0.004)
        centre = self.transforms[WARM_UP + frame, 15] @ np.append(self.rest[self.anatomy.head > 0.9].mean(axis=0), 1)
        found["hair"] = Surface(*self.hair.ribbons(strands, centre[:3]), 0.33, 0.3)
        return found

    def track(self, size: int, body_model: str) -> dict[str, NDArray]:
        """Arrays of NAME.track.npz in the trackers' world, whose camera is `TRACK_CAMERA`; `size` is in pixels."""
        flip = TRACK_CAMERA[:3, :3]
        turn = flip @ self.camera.world_to_camera[:3, :3]
        shift = flip @ self.camera.world_to_camera[:3, 3]
        clip = {name: value[WARM_UP:].copy() for name, value in self.motion.items()}
        with torch.no_grad():
            rest = BodyParams.zeros((), len(self.anatomy.body.expression_names))
            rest.betas = torch.from_numpy(self.betas)
            pelvis = self.anatomy.body(rest)[1][0].double().numpy()
        orient = Rotation.from_matrix(turn) * Rotation.from_rotvec(clip["global_orient"])
        clip["global_orient"] = orient.as_rotvec().astype(np.float32)
        clip["transl"] = ((pelvis + clip["transl"]) @ turn.T + shift - pelvis).astype(np.float32)
        intrinsics = np.array(
            [[self.camera.focal * size, 0, size / 2], [0, self.camera.focal * size, size / 2], [0, 0, 1]]
        )
        count = self.num_frames
        return {
            "betas": self.betas,
            **clip,
            "intrinsics": np.tile(intrinsics, (count, 1, 1)).astype(np.float32),
            "world_to_camera": np.tile(TRACK_CAMERA, (count, 1, 1)).astype(np.float32),
            "frame_valid": np.ones(count, dtype=bool),
            "fps": np.array(FPS, dtype=np.float64),
            "image_size": np.array([size, size]),
            "body_model": np.array(body_model),
        }
