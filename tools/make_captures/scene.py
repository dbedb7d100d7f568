"""Light and rendering with Mitsuba (extra `capture`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visa.tools.make_captures.person import Light
from visa.tools.make_captures.stage import Stage, Surface

Floats = NDArray[np.float64]
KEY_DISTANCE, BLIND_DISTANCE = 2.2, 1.25  # metres from the chest
EXPOSURE = 1.55
BACKDROP = 0.5  # grey, of the stored frames outside of the person


def require_mitsuba(threads: int) -> Any:
    """Mitsuba in its scalar variant, which runs on every machine and gives the same picture each time.

    Raises ValueError where the package is absent.
    """
    try:
        import drjit
        import mitsuba
    except ImportError as error:
        raise ValueError("captures are rendered with Mitsuba: pip install -e '.[capture]'") from error
    mitsuba.set_variant("scalar_rgb")
    drjit.set_thread_count(threads)
    mitsuba.set_log_level(mitsuba.LogLevel.Error)
    return mitsuba


def light_direction(azimuth: float, height: float) -> Floats:
    """Unit vector [3] from the person towards a light (degrees; azimuth 0 is +z, where the person looks)."""
    azimuth, height = np.radians(azimuth), np.radians(height)
    return np.array([np.cos(height) * np.sin(azimuth), np.sin(height), np.cos(height) * np.cos(azimuth)])


def blind_boxes(light: Light, chest: Floats) -> list[tuple[Floats, Floats, Floats]]:
    """Bars between key light and chest: centre, the bar's own direction, its way to the light (each [3])."""
    towards = light_direction(light.key_azimuth, light.key_height)
    along = np.cross(towards, np.array([0.25, 1.0, 0.0]))
    along /= np.linalg.norm(along)
    across = np.cross(along, towards)
    steps = (np.arange(light.blinds) - (light.blinds - 1) / 2) * 0.115
    return [(chest + BLIND_DISTANCE * towards + step * across, along, towards) for step in steps]


def _sky(mi: Any, light: Light) -> dict[str, Any]:
    """An environment that fades from sky to ground, brighter on the key light's side."""
    height = np.linspace(1, -1, 32)[:, None, None]
    share = 1 / (1 + np.exp(-4 * height))
    picture = share * np.asarray(light.sky) + (1 - share) * np.asarray(light.ground)
    picture = np.repeat(picture, 64, axis=1) * light.sky_strength
    return {"type": "envmap", "bitmap": mi.Bitmap(picture.astype(np.float32))}


def _lamp(mi: Any, target: Floats, direction: Floats, distance: float, size: float, colour: Floats) -> dict[str, Any]:
    """A square lamp that gives `colour` as irradiance at the target."""
    transform = mi.ScalarTransform4f
    place = transform().look_at(
        origin=(target + distance * direction).tolist(), target=target.tolist(), up=[0.02, 1.0, 0.03]
    )
    radiance = colour * distance**2 / (4 * size * size)
    return {
        "type": "rectangle",
        "to_world": place @ transform().scale(size),
        "emitter": {"type": "area", "radiance": {"type": "rgb", "value": radiance.tolist()}},
    }


def _mesh(mi: Any, name: str, surface: Surface) -> Any:
    colour = {"type": "mesh_attribute", "name": "vertex_color"}
    if surface.specular:
        inner = {
            "type": "principled", "base_color": colour, "roughness": surface.roughness, "specular": surface.specular,
        }  # fmt: skip
    else:
        inner = {"type": "diffuse", "reflectance": colour}
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict({"type": "twosided", "inner": inner})
    mesh = mi.Mesh(name, len(surface.vertices), len(surface.faces), has_vertex_normals=True, props=properties)
    mesh.add_attribute("vertex_color", 3, surface.colours.astype(np.float32).ravel())
    parameters = mi.traverse(mesh)
    parameters["vertex_positions"] = surface.vertices.astype(np.float32).ravel()
    parameters["vertex_normals"] = surface.normals.astype(np.float32).ravel()
    parameters["faces"] = surface.faces.astype(np.uint32).ravel()
    parameters.update()
    return mesh


class Studio:
    """Lights and camera of one clip; renders its frames.

    Args:
        mi: what `require_mitsuba` returns.
        stage: the clip's geometry.
        size: side of the square picture (px).
        samples: per pixel; a square number.
    """

    def __init__(self, mi: Any, stage: Stage, size: int, samples: int) -> None:
        self.mi, self.stage = mi, stage
        light, camera = stage.person.light, stage.camera
        transform = mi.ScalarTransform4f
        chest = np.asarray(stage.bodies[:, stage.anatomy.head > 0.9].mean(axis=(0, 1))) - np.array([0, 0.12, 0])
        towards = light_direction(light.key_azimuth, light.key_height)
        key_colour = np.asarray(light.key_colour) * np.pi * 0.85
        rim = light_direction(180 + light.key_azimuth * 0.7, 35)
        forward = camera.world_to_camera[2, :3]
        self.fixed: dict[str, Any] = {
            "type": "scene",
            "integrator": {"type": "direct", "emitter_samples": 2, "bsdf_samples": 1, "hide_emitters": True},
            "sky": _sky(mi, light),
            "key": _lamp(mi, chest, towards, KEY_DISTANCE, light.key_size, key_colour),
            "sensor": {
                "type": "perspective",
                "fov": float(2 * np.degrees(np.arctan(0.5 / camera.focal))),
                "near_clip": 0.05,
                "to_world": transform().look_at(
                    origin=camera.position.tolist(), target=(camera.position + forward).tolist(), up=[0, 1, 0]
                ),
                # A box filter shares no sample between pixels, so that the order of threads cannot change a picture.
                "film": {
                    "type": "hdrfilm",
                    "width": size,
                    "height": size,
                    "pixel_format": "rgba",
                    "rfilter": {"type": "box"},
                },
                "sampler": {"type": "multijitter", "sample_count": samples},
            },
        }  # fmt: skip
        if light.rim:
            self.fixed["rim"] = _lamp(mi, chest, rim, KEY_DISTANCE, 0.3, np.full(3, np.pi * light.rim))
        for index, (centre, along, way) in enumerate(blind_boxes(light, chest)):
            place = transform().look_at(
                origin=centre.tolist(), target=(centre + way).tolist(), up=np.cross(way, along).tolist()
            )
            self.fixed[f"blind{index}"] = {
                "type": "cube",
                "to_world": place @ transform().scale([0.5, 0.028, 0.004]),
                "bsdf": {"type": "diffuse", "reflectance": {"type": "rgb", "value": 0.2}},
            }

    def render(self, frame: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """One frame: sRGB [H, W, 3] and mask [H, W].

        The colour under a soft edge is the person's own, carried outward into the grey backdrop, so that matting with
        the mask gives back exactly what was rendered.
        """
        meshes = {name: _mesh(self.mi, name, surface) for name, surface in self.stage.surfaces(frame).items()}
        scene = self.mi.load_dict({**self.fixed, **meshes})
        linear = np.asarray(self.mi.render(scene, seed=frame), dtype=np.float64)
        return finish(linear[..., :3], np.clip(linear[..., 3], 0, 1))


def finish(premultiplied: Floats, alpha: Floats) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Linear colours [H, W, 3] multiplied by alpha [H, W] -> sRGB of the person over the backdrop, and mask, uint8."""
    colour = np.clip(EXPOSURE * premultiplied / np.maximum(alpha, 1e-3)[..., None], 0, None)
    # A shoulder: highlights bend towards white instead of clipping.
    colour = np.where(colour > 0.7, 0.7 + 0.3 * np.tanh((colour - 0.7) / 0.3), colour)
    srgb = np.where(colour <= 0.0031308, 12.92 * colour, 1.055 * np.maximum(colour, 1e-9) ** (1 / 2.4) - 0.055)
    picture, weight = srgb * (alpha > 0.02)[..., None], (alpha > 0.02).astype(np.float64)
    known = weight > 0
    for _ in range(4):  # four pixels outward: more than a chroma sample and a resize reach
        grown, total = _box_sum(picture * weight[..., None]), _box_sum(weight[..., None])
        fresh = (weight == 0) & (total[..., 0] > 0)
        picture = np.where(fresh[..., None], grown / np.maximum(total, 1e-9), picture)
        weight = np.where(fresh, 1.0, weight)
    picture = np.where((weight > 0)[..., None], picture, BACKDROP)
    picture = np.where(known[..., None], srgb, picture)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), np.round(alpha * 255).astype(np.uint8)


def _box_sum(values: Floats) -> Floats:
    """Sum over 3 x 3 neighbours of [H, W, C]."""
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
    height, width = values.shape[:2]
    shifted = (padded[i : i + height, j : j + width] for i in range(3) for j in range(3))
    return sum(shifted, start=np.zeros_like(values))
