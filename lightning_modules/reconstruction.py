"""Stage 1: one photo -> Gaussians and 3D-aware features on the template (ViSA, first stage)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from visa.artifacts.media import sheet, side_by_side, write_image
from visa.artifacts.tensorboard import log_image, log_video
from visa.artifacts.weights import load_weights
from visa.datamodules.batch import VideoBatch
from visa.datamodules.spread import spread_frames
from visa.evaluation.evaluation import Prediction
from visa.evaluation.image import psnr
from visa.evaluation.larger import larger_frames, larger_rows, larger_sheet
from visa.evaluation.novel_motion import add_cross_motion, photo_sheet
from visa.evaluation.report import TestReport
from visa.evaluation.turned import turned_figures
from visa.lightning_modules.stage import Stage
from visa.losses.image import l1, mask_loss, ssim_loss, weighted_mean
from visa.losses.perceptual import PerceptualDistance, enlarged
from visa.networks.avatar import Avatar
from visa.networks.body import BodyParams
from visa.networks.compositing import splat
from visa.networks.feature_decoder import FeatureDecoder
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.gaussians import Gaussians
from visa.networks.photo import Photo
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.regions import DetailRegions
from visa.networks.splat_maps import SplatMaps
from visa.runtime.photos import photo_of
from visa.runtime.shipped import COMMANDS, build_reconstructor

LARGER_FRAMES = 12  # of a block, most that rows of larger pictures are measured in


def with_photo(batch: VideoBatch) -> VideoBatch:
    """The windows with the photo as one more frame: what an avatar must show before all else."""

    def added(frames: Tensor, photo: Tensor) -> Tensor:
        return torch.cat([frames, photo[:, None]], dim=1)

    photo_body = batch.reference_body.map(lambda value: value[:, None])
    return replace(
        batch,
        frames=added(batch.frames, batch.reference),
        masks=added(batch.masks, batch.reference_mask),
        body=BodyParams.cat([batch.body, photo_body], dim=1),
        intrinsics=added(batch.intrinsics, batch.reference_intrinsics),
        world_to_camera=added(batch.world_to_camera, batch.reference_world_to_camera),
        valid=added(batch.valid, torch.ones_like(batch.valid[:, 0])),
        frame_numbers=added(batch.frame_numbers, batch.reference_numbers),
    )


class Reconstruction(Stage):
    """Photo -> avatar, trained by splatting it into other frames of the same clip.

    Args:
        num_steps: training batches; the data module owns the number.
        body_model: SMPL-X-format file.
        remove_neck: use the neck-removed template.
        feature_channels: C of the 3D-aware feature.
        reconstructor_options: sizes and encoders.
        learning_rate: of AdamW.
        loss_weights: weight of each raw term: `l1`, `perceptual`, `mask`, `refined`, `offset`, `scale`; the first
            two of the splat with the photo as texture, `textured` and `textured_perceptual`; and of those that are
            computed only at a weight above 0: `textured_fine` (`textured_perceptual` of enlarged frames), `region` (L1
            in the projected boxes of face and hands) and `ssim` (1 - SSIM of the splat).
        perceptual_frames: frames a batch that the perceptual loss looks at (it costs more than the splatting).
        weights: start from this file; None starts from nothing.
        fit: how `test` fits avatars to their photos.
        test_photos: numbers of photos, of each of which `test` shows an avatar; beside the first photo they are
            frames of the clip outside of its blocks. `[1]` tests the photo alone; `test --full` adds 4 and 16.
        test_larger: side in px of a row of larger pictures in `test`, as `predict` writes them; None has none.
        cross_people: so many of the people who never train are moved by others' motion in `test`; None moves all.
        cross_drivers: so many others move each; 0 leaves these rows out.
        test_photo: `test` shows the avatar of this tracked photo turned and with an open mouth; None shows none.
        seed: of the noise.
    """

    stage = "reconstruction"
    shipped = "assets/weights/reconstruction.safetensors"
    network = "reconstructor"
    frozen = ("perceptual.",)

    def __init__(
        self,
        num_steps: int = 1000,
        body_model: str = "assets/body/smplx_anny.npz",
        remove_neck: bool = True,
        feature_channels: int = 16,
        reconstructor_options: ReconstructorOptions = ReconstructorOptions(),  # noqa: B008
        learning_rate: float = 1e-3,
        loss_weights: dict[str, float] = {  # noqa: B006
            "l1": 1.0,
            "perceptual": 0.1,
            "textured": 1.0,
            "textured_perceptual": 0.3,
            "textured_fine": 0.0,
            "mask": 0.3,
            "refined": 0.5,
            "offset": 0.05,
            "scale": 0.01,
            "region": 0.0,
            "ssim": 0.0,
        },
        perceptual_frames: int = 1,
        weights: str | None = None,
        fit: FitOptions = FitOptions(),  # noqa: B008
        test_photos: list[int] = [1],  # noqa: B006
        test_larger: int | None = None,
        cross_people: int | None = 4,
        cross_drivers: int = 3,
        test_photo: str | None = "assets/photos/astronaut.png",
        seed: int = 0,
    ) -> None:
        super().__init__(num_steps, seed)
        self.learning_rate, self.loss_weights, self.perceptual_frames = (
            learning_rate,
            dict(loss_weights),
            perceptual_frames,
        )
        self.reconstructor = build_reconstructor(body_model, remove_neck, feature_channels, reconstructor_options)
        self.decoder = FeatureDecoder(feature_channels)
        self.perceptual = PerceptualDistance("alex")
        self.regions = DetailRegions(self.reconstructor.body)
        if not test_photos or min(test_photos) < 1:
            raise ValueError(f"test_photos is {test_photos}: give numbers of photos from 1 on, such as [1, 4, 16]")
        self.weights, self.fit, self.test_photo, self.test_photos = weights, fit, test_photo, sorted(set(test_photos))
        self.test_larger, self.cross_people, self.cross_drivers = test_larger, cross_people, cross_drivers
        if weights is not None:
            load_weights(self.reconstructor, weights, COMMANDS[self.stage])
        self.report: TestReport | None = None
        self._tested: tuple[str, dict[str, Avatar]] | None = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; the per-anchor prior is a table, so it takes no weight decay."""
        named = [*self.reconstructor.named_parameters(), *self.decoder.named_parameters()]
        groups = [
            {"params": [p for n, p in named if "prior" not in n], "weight_decay": 1e-2},
            {"params": [p for n, p in named if "prior" in n], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}

    def render(self, batch: VideoBatch, use_heads: bool = True, use_texture: bool = True) -> tuple[Avatar, SplatMaps]:
        """Reconstruct from the reference photo and splat into every frame of the batch."""
        avatar, _ = self.reconstructor(photo_of(batch), use_heads)
        if not use_texture:
            avatar = replace(avatar, texture=None)
        body = self.reconstructor.body
        return avatar, avatar.render(body, batch.view())

    def decode(self, maps: SplatMaps) -> Tensor:
        """What a light network makes of the splatted features, `[B,T,3,H,W]`."""
        decoded = self.decoder(maps.gaussian_maps().flatten(0, 1), maps.rgb.flatten(0, 1))
        return decoded.unflatten(0, maps.rgb.shape[:2])

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        """Losses on the splat and on the features' light decoding, in other frames and in the photo itself."""
        batch = with_photo(batch)
        avatar, maps = self.render(batch)
        weight = 1 - self.neck_hole(avatar, batch, maps.alpha)
        refined = self.decode(maps)
        terms = self._terms(avatar, maps, refined, weight, batch)
        loss = self.weighted_sum(terms, self.loss_weights)
        self.step += 1
        return loss

    def _terms(
        self, avatar: Avatar, maps: SplatMaps, refined: Tensor, weight: Tensor, batch: VideoBatch
    ) -> dict[str, Tensor]:
        """Every raw term; `weight [B,T,1,H,W]` is 0 in the hole of the neck."""
        order = torch.randperm(batch.frames.shape[1], generator=self.generator("perceptual_frames"))
        chosen = order[: self.perceptual_frames]
        # Terms that look at neighbourhoods see no hole.
        whole, textured = (image * weight + batch.frames * (1 - weight) for image in (maps.rgb, maps.textured))
        seen, true = (frames[:, chosen].flatten(0, 1) for frames in (textured, batch.frames))
        error = l1(maps.rgb, batch.frames)
        terms = {
            "l1": weighted_mean(error, weight).mean(),
            "perceptual": self.perceptual(whole[:, chosen].flatten(0, 1), true).mean(),
            "textured": weighted_mean(l1(maps.textured, batch.frames), weight).mean(),
            "textured_perceptual": self.perceptual(seen, true).mean(),
            "mask": weighted_mean(mask_loss(maps.alpha, batch.masks), weight).mean(),
            "refined": l1(refined, batch.frames).mean(),
            "offset": ((avatar.gaussians.means - self.reconstructor.anchors(avatar.betas)) / 0.01).square().mean(),
            "scale": (avatar.gaussians.scales / 0.01).square().mean(),
        }
        if self.loss_weights.get("textured_fine", 0.0) > 0:
            terms["textured_fine"] = self.perceptual(enlarged(seen), enlarged(true)).mean()
        if self.loss_weights.get("region", 0.0) > 0:
            inside = self.regions.mask(batch.view())
            terms["region"] = weighted_mean(error, weight * inside).mean()
        if self.loss_weights.get("ssim", 0.0) > 0:
            terms["ssim"] = ssim_loss(whole.flatten(0, 1), batch.frames.flatten(0, 1)).mean()
        return terms

    @torch.no_grad()
    def neck_hole(self, avatar: Avatar, batch: VideoBatch, alpha: Tensor) -> Tensor:
        """`[B,T,1,H,W]`: 1 where the removed neck band shows uncovered; 0 everywhere if the neck stays.

        The truth has skin there and the template has nothing: a loss there would only pull the neighbours into the gap.
        """
        body, ids = self.reconstructor.body, self.reconstructor.anchors.template.neck_ids.to(self.device)
        if len(ids) == 0:
            return torch.zeros_like(alpha)
        rest = body.rest_vertices(avatar.betas, torch.zeros_like(batch.reference_body.expression), ids)
        quats = torch.zeros(*rest.shape[:2], 4, device=self.device)
        quats[..., 0] = 1
        band = Gaussians(
            rest, quats, torch.full_like(rest, 0.012), torch.full_like(rest[..., 0], 0.95), rest, rest[..., :0]
        )
        posed = Avatar(band, avatar.betas, ids, avatar.background).pose(body, batch.body)
        neck = splat(posed, batch.view(), avatar.background).alpha
        return neck * (1 - alpha)

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        """PSNR and mask error on the validation block; pictures of the first window."""
        _, maps = self.render(batch)
        refined = self.decode(maps)
        self.log("val/psnr_splat", psnr(maps.rgb[0].clamp(0, 1), batch.frames[0]).mean(), prog_bar=True, batch_size=1)
        self.log("val/psnr_refined", psnr(refined[0].clamp(0, 1), batch.frames[0]).mean(), batch_size=1)
        self.log("val/mask", mask_loss(maps.alpha, batch.masks).mean(), batch_size=1)
        textured = maps.textured[0].clamp(0, 1)
        self.log("val/psnr_textured", psnr(textured, batch.frames[0]).mean(), batch_size=1)
        self.log("val/perceptual_textured", self.perceptual(textured, batch.frames[0]).mean(), batch_size=1)
        self.log("val/perceptual", self.perceptual(maps.rgb[0].clamp(0, 1), batch.frames[0]).mean(), batch_size=1)
        if batch_idx == 0:
            rows = {"truth": batch.frames[0], "splat": maps.rgb[0], "textured": textured, "decoded": refined[0]}
            log_image(self.loggers, "val/sheet", sheet(rows), self.step)
            log_video(
                self.loggers, "val/video", side_by_side({"photo": batch.reference[0], **rows}), batch.fps[0], self.step
            )

    def on_test_start(self) -> None:
        """Open the report."""
        self.report = self.open_report("each test block from the reference photo alone")

    def test_step(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Rows: freeze, nearest, projected colours only (no learning), the feed-forward avatar and those fitted to
        one and several photos, each with photos as texture and without.
        """
        assert self.report is not None
        photo = photo_of(batch)
        with self.report.timed("projected", batch, num_steps=0) as row:
            projected, _ = self.reconstructor(photo, use_heads=False)
            self._draw(row, replace(projected, texture=None), batch)
        if self._tested is None or self._tested[0] != batch.names[0]:  # blocks of one clip have one photo
            self._tested = batch.names[0], self._test_avatars(batch)
        avatars = self._tested[1]
        for name, one in avatars.items():
            for what, shown in (("splat", replace(one, texture=None)), ("textured", one)):
                with self.report.timed(name.format(what), batch, num_steps=0) as row:
                    self._draw(row, shown, batch)
        if self.test_larger is not None and "textured" in self.report.rows[batch.names[0]]:
            self._add_larger(avatars["{}"], batch, self.test_larger)
        self.report.close_block(batch)

    def _test_avatars(self, batch: VideoBatch) -> dict[str, Avatar]:
        """Avatars of a clip, under the pattern of their rows' names: as the network gives it, and fitted to photos."""
        photo = photo_of(batch)
        avatar, _ = self.reconstructor(photo)
        avatars = {"feed-forward {}": avatar}
        for count in self.test_photos:
            further = self._further_photos(batch, count)
            name = "{}" if count == 1 else f"{{}}, {count} photos"
            avatars[name] = fit_avatar(self.reconstructor, avatar, photo, self.fit, further=further)
        return avatars

    def _add_larger(self, avatar: Avatar, batch: VideoBatch, size: int) -> None:
        """Rows at `size` px of some frames of a clip's first block: larger frames take long to measure."""
        assert self.report is not None
        name, module = batch.names[0], self.data()
        if self.report.has_rows(name):
            return
        batch = batch.cut(slice(None, None, math.ceil(batch.frames.shape[1] / LARGER_FRAMES)))
        clip, numbers = module.clip_named(name), batch.frame_numbers[0].cpu().numpy()
        large = module.reader.read(clip, numbers, int(batch.reference_numbers[0]), size)
        large = self.transfer_batch_to_device(large, self.device, 0)
        frames = larger_frames(self.reconstructor, self.fit, avatar, batch, large)
        write_image(self.report.directory / f"{name}_{size}.png", larger_sheet(self.reconstructor.body, frames, large))
        rows = larger_rows(frames, large)
        self.report.add_rows(name, rows, f"measured at {size} px, in some frames of the first block")

    def _further_photos(self, batch: VideoBatch, count: int) -> list[Photo]:
        """`count` - 1 photos beside the batch's own, of its clip's frames outside of test, gaps and validation."""
        module = self.data()
        clip = module.clip_named(batch.names[0])
        first, body = int(batch.reference_numbers[0]), self.reconstructor.body
        chosen = spread_frames(clip, clip.free_frames(), count, first, body)[1:]
        read = [module.reader.read(clip, np.asarray([number]), number, module.resolution) for number in chosen]
        return [photo_of(self.transfer_batch_to_device(one, self.device, 0)) for one in read]

    def _draw(self, row: Prediction, avatar: Avatar, batch: VideoBatch) -> None:
        """Fill a row: the block's frames, the photo's own pose, and what turned views show."""
        body = self.reconstructor.body
        frames, coverage = [], []
        for first in range(0, batch.frames.shape[1], 16):  # a whole block with 16 photos would take gigabytes
            part = batch.cut(slice(first, first + 16))
            maps = avatar.render(body, part.view())
            frames.append(maps.textured[0])
            coverage.append(maps.coverage[0])
        row.frames, row.coverage = torch.cat(frames), torch.cat(coverage)
        row.own_pose = self.own_pose(avatar, photo_of(batch))[0]
        row.figures |= turned_figures(self.reconstructor, avatar, photo_of(batch))

    def own_pose(self, avatar: Avatar, photo: Photo) -> Tensor:
        """`[B,3,H,W]` the avatar as the photo shows it: with its pose and camera."""
        return avatar.render(self.reconstructor.body, photo.view()).textured[:, 0]

    def on_test_epoch_end(self) -> None:
        """What has no truth: each clip that never trains driven by the next one, and the photo from other sides."""
        assert self.report is not None
        if self.cross_drivers > 0:
            add_cross_motion(self.reconstructor, self.fit, self.report, self.cross_people, self.cross_drivers)
        if self.test_photo is not None:
            sheet_of_photo = photo_sheet(self.reconstructor, self.fit, self.test_photo, self.report)
            write_image(self.report.directory / "photo.png", sheet_of_photo)
