"""The shader of a stage's config, made ready to paint any person live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from visa import cli
from visa.lightning_modules.student import StudentStage
from visa.networks.codec import BlockCodec, WanCodec
from visa.networks.detail import detail_of
from visa.networks.rollout import CausalRollout
from visa.networks.shader import VideoShader, Window
from visa.networks.splat_maps import MatteOptions
from visa.person import Person
from visa.runtime.conditioner import Conditioner
from visa.runtime.stream import AvatarStream


@dataclass(frozen=True)
class Shading:
    """A student and how it paints.

    Attributes:
        shader: the network.
        codec: frames <-> latents.
        noise_levels: its denoising steps.
        window: frames that it sees.
        matte: what of the painted picture stands.
        resolution: px at which it paints.
        has_clean_pass: as of `CausalRollout`.
    """

    shader: VideoShader
    codec: BlockCodec | WanCodec
    noise_levels: tuple[float, ...]
    window: Window
    matte: MatteOptions
    resolution: int
    has_clean_pass: bool = True

    def levels(self, num_steps: int | None) -> tuple[float, ...]:
        """So many of the noise levels, evenly, the first among them; None takes all. ValueError where it cannot be."""
        count = len(self.noise_levels)
        steps = count if num_steps is None else num_steps
        if steps < 1 or count % steps:
            raise ValueError(f"--steps is {steps}: give a number that divides the {count} noise_levels of the config")
        return self.noise_levels[:: count // steps]

    def fast(self) -> Shading:
        """The same in fewer operations: no pass over the clean chunk, and no chunk seen but the last and the photo."""
        return replace(self, has_clean_pass=False, window=Window(0, self.shader.chunk_frames))

    def stream(self, person: Person, size: int, geometry: int | None = None) -> AvatarStream:
        """A stream of its own for a person, begun; pictures of `size` px, their geometry drawn as of `Performer`."""
        geometry = min(size, person.resolution if geometry is None else geometry)
        conditioner = Conditioner(person.reconstructor, self.codec).eval()
        rollout = CausalRollout(self.shader, self.noise_levels, self.window, self.has_clean_pass)
        stream = AvatarStream(conditioner, rollout, matte=self.matte)
        photo = person.photos[0].resized(min(self.resolution, geometry))
        avatar = person.avatar
        if size > photo.image.shape[-1]:
            avatar = replace(avatar, detail=detail_of(avatar))
        stream.begin(avatar, photo, size, geometry)
        return stream


def load_shading(
    config: str = cli.DEFAULT_CONFIG,
    weights: str = "shipped",
    num_steps: int | None = None,
    options: Sequence[str] = (),
) -> Shading:
    """Build the student of a config.

    Args:
        config: of a stage with a student.
        weights: "shipped", or a file of a run.
        num_steps: as of `Shading.levels`.
        options: further ones, as of `train.py predict`.

    Raises:
        ValueError: the config has no student, or its steps do not divide.
    """
    arguments = ["predict", "-c", config, "--image=none", "--driving=none", *options]
    built = cli.main(arguments, cli=cli.BuildOnly)
    stage, data = built.model, built.datamodule
    if not isinstance(stage, StudentStage):
        raise ValueError(f"{config} has no student: give configs/shader.yaml or configs/adversarial.yaml")
    stage.load_exported(weights, cli.RUNS)
    # Convolutions of a CPU read pixels with their channels together: the same numbers in four fifths of the time.
    stage.student.condition_head.to(memory_format=torch.channels_last)
    levels, resolution = tuple(stage.noise_levels), data.resolution
    shading = Shading(stage.student.eval(), stage.codec, levels, stage.rollout_window, stage.matte, resolution)
    return replace(shading, noise_levels=shading.levels(num_steps))
