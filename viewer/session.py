"""One client of the viewer: its person, pose, look and picture. Nothing of it is another client's."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visa.artifacts.media import to_uint8, write_video
from visa.live.blendshapes import Blendshapes
from visa.live.performer import LOOKS, Look, Performer
from visa.live.shading import Shading
from visa.networks.body import BodyParams
from visa.networks.rasterizer.constants import EPS_2D
from visa.person import Person
from visa.runtime.splat_files import write_splat
from visa.viewer.controls import Controls
from visa.viewer.splats import UPRIGHT, splats_of
from visa.viewer.uploads import MOST_BYTES, MOST_PHOTOS, Uploads

SLIDERS = "sliders alone"
BUSY = threading.Lock()  # one client at a time fits a person or loads the shader
MOST_RECORDED = 250  # pictures of a downloaded video


class Session:
    """Controls on the right, Gaussians in the middle, a loop that draws.

    Args:
        client: viser's.
        person: whom it starts with.
        driving: motions of the play list, by the names that are shown.
        size: px of the picture.
        look: that it starts with.
        shading: loads the shader, when it is first asked for.
    """

    def __init__(
        self, client: Any, person: Person, driving: dict[str, Path], size: int, look: Look,
        shading: Callable[[], Shading],
    ) -> None:  # fmt: skip
        self.client, self.person, self.driving, self.size, self._shading = client, person, driving, size, shading
        self._folder = tempfile.TemporaryDirectory(prefix="visa_viewer_")
        self.uploads = Uploads(Path(self._folder.name))
        self._changed, self._ended = threading.Event(), threading.Event()
        self._motion: BodyParams | None = None
        self._rate, self._frame = 25.0, 0
        self._times: deque[float] = deque(maxlen=100)
        self._shown: deque[float] = deque(maxlen=30)
        self._performer: Performer | None = None
        self._build(look)
        self._look_at_person()
        self._thread = threading.Thread(target=self._loop, daemon=True, name=f"viewer client {client.client_id}")
        self._thread.start()

    def _build(self, look: Look) -> None:
        """All controls."""
        gui, black = self.client.gui, np.zeros((self.size, self.size, 3), np.uint8)
        gui.configure_theme(control_width="large", show_logo=False, show_share_button=False)
        self._picture = gui.add_image(black, label="live picture", format="jpeg", jpeg_quality=90)
        self._look = gui.add_dropdown("look", LOOKS, initial_value=look)
        self._play = gui.add_dropdown("motion", (SLIDERS, *self.driving), initial_value=SLIDERS)
        self._statistics = gui.add_markdown("")
        self._status = gui.add_markdown("")
        tabs = gui.add_tab_group()
        with tabs.add_tab("Pose"):
            self.controls = Controls(gui, Blendshapes(self.person.body), self._changed.set)
        with tabs.add_tab("Photos"):
            gui.add_markdown(f"JPEG, PNG or WebP of one person, up to {MOST_PHOTOS} of {MOST_BYTES // 10**6} MB")
            upload = gui.add_upload_button("Add a photo", mime_type="image/*")
            make = gui.add_button("Make the avatar")
        with tabs.add_tab("Files"):
            video, ply = gui.add_button("Download mp4"), gui.add_button("Download .ply of this pose")
        self._look.on_update(lambda _: self._start_over())
        self._play.on_update(lambda _: self._choose_motion())
        upload.on_upload(lambda _: self._told(lambda: self._add_photo(upload.value.content)))
        make.on_click(lambda _: self._told(self._make_person))
        video.on_click(lambda _: self._told(self._send_video))
        ply.on_click(lambda _: self._told(self._send_splat))

    def _look_at_person(self) -> None:
        """From where the photo was taken."""
        camera = self.person.photos[0].world_to_camera[0]
        eye, ahead = -camera[:3, :3].T @ camera[:3, 3], camera[2, :3]
        head = self.person.body.joint_transforms(self.person.photos[0].body)[0, 15]
        near = (head[:3, :3] @ self.person.body.joint_template[15] + head[:3, 3] - eye) @ ahead
        self.client.camera.position = (UPRIGHT @ eye).numpy()
        self.client.camera.look_at = (UPRIGHT @ (eye + near * ahead)).numpy()  # setting the place has moved it
        focal = float(self.person.photos[0].intrinsics[0, 1, 1])
        self._blur = EPS_2D * (float(near) / focal) ** 2
        self.client.camera.fov = 2 * float(np.arctan(self.person.resolution / 2 / focal))

    def _told(self, action: Callable[[], str]) -> None:
        """Run what a button asks for; say how it went, errors of the input in one line."""
        try:
            self._status.content = action()
        except (ValueError, OSError) as error:
            self._status.content = f"**error**: {error}"

    def _start_over(self) -> None:
        self._performer = None
        self._changed.set()

    def _choose_motion(self) -> None:
        def read() -> str:
            name = self._play.value
            self._motion, self._frame = None, 0
            if name != SLIDERS:
                self._motion, self._rate = self.person.motion(self.driving[name])
            return ""

        self._told(read)
        self._start_over()

    def _add_photo(self, content: bytes) -> str:
        self.uploads.add(content)
        return f"{len(self.uploads.paths)} photos"

    def _make_person(self) -> str:
        if not self.uploads.paths:
            raise ValueError("no photo yet: add one")
        self._status.content = "tracking and fitting: half a minute"
        with BUSY:
            self.person = Person.from_photos(*self.uploads.take(), size=self.size)
        self._look_at_person()
        self._choose_motion()
        return "this is the person of your photos"

    def pose(self) -> BodyParams:
        """The pose `[1]` of this moment."""
        motion = self._motion
        base = self.person.photos[0].body if motion is None else motion[self._frame : self._frame + 1]
        return self.controls.applied(base)

    def _send_video(self) -> str:
        """The motion from its start, at most MOST_RECORDED pictures, in the look of now; a still one lasts a second."""
        motion, performer = self._motion, self._performer_of_now(self.person.resolution)
        count = 25 if motion is None else min(len(motion.transl), MOST_RECORDED)
        poses = [
            self.controls.applied(self.person.photos[0].body if motion is None else motion[t : t + 1])
            for t in range(count)
        ]
        frames = (frame for pose in poses for frame in performer.push(pose))
        path = write_video(Path(self._folder.name) / "visa.mp4", frames, fps=self._rate)
        self.client.send_file_download("visa.mp4", path.read_bytes())
        return f"{count} poses sent"

    def _send_splat(self) -> str:
        with torch.no_grad():
            posed = self.person.avatar.pose(self.person.body, self.pose().map(lambda value: value[:, None]))
        path = write_splat(Path(self._folder.name) / "visa.ply", posed.map(lambda value: value[0, 0]))
        self.client.send_file_download("visa.ply", path.read_bytes())
        return "splats sent"

    def _performer_of_now(self, geometry: int) -> Performer:
        """A new one in the look that is chosen, with geometry of so many px."""
        look: Look = self._look.value
        if look != "shaded":
            return Performer(self.person, look, self.size, geometry=geometry)
        with BUSY:
            return Performer(self.person, look, self.size, self._shading(), geometry)

    def _loop(self) -> None:
        """Draw when something has changed, and all the time while a motion plays."""
        self._changed.set()
        while not self._ended.is_set():
            self._changed.wait(None if self._motion is None else 0.0)
            self._changed.clear()
            if self._ended.is_set():
                return
            begin = time.perf_counter()
            self._told(self._draw)
            if self._motion is not None:
                self._frame = (self._frame + 1) % len(self._motion.transl)
                time.sleep(max(0.0, 1 / self._rate - (time.perf_counter() - begin)))

    @torch.no_grad()
    def _draw(self) -> str:
        """One pose: the picture and the Gaussians."""
        performer = self._performer
        if performer is None:
            is_still = self._motion is None  # what moves is drawn in less time
            geometry = self.person.resolution if is_still else self.person.quick_resolution
            performer = self._performer = self._performer_of_now(geometry)
        pose, begin = self.pose(), time.perf_counter()
        # A still pose is shown at once: a shader waits for a whole chunk.
        pictures = performer.push(pose if self._motion is not None else _repeated(pose, performer.chunk))
        if len(pictures):
            self._times.append(1000 * (time.perf_counter() - begin) / len(pictures))
            self._picture.image = to_uint8(pictures[-1])
        posed = self.person.avatar.pose(self.person.body, pose.map(lambda value: value[:, None]))
        splats = splats_of(posed.map(lambda value: value[0, 0]), self._blur)
        self.client.scene.add_gaussian_splats("/person", **splats._asdict())
        self._shown.append(time.perf_counter())
        self._statistics.content = self._figures(len(splats.centers))
        return ""

    def _figures(self, count: int) -> str:
        middle, most = np.percentile(self._times or [0.0], [50, 99])
        span = self._shown[-1] - self._shown[0]
        rate = (len(self._shown) - 1) / span if self._motion is not None and span > 0 else 0.0
        shown = f", {rate:.0f} a second" if rate else ""
        return f"{count:,} Gaussians, {self.size} px, {middle:.0f} ms a picture (p99 {most:.0f}){shown}"

    def close(self) -> None:
        """End the loop; the client's files go."""
        self._ended.set()
        self._changed.set()
        self._thread.join(timeout=10)
        self._folder.cleanup()


def _repeated(pose: BodyParams, count: int) -> BodyParams:
    return pose.map(lambda value: value.expand(count, *value.shape[1:]))
