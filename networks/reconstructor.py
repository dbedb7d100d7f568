"""Feed-forward reconstruction: one tracked photo -> a canonical Gaussian avatar on the template.

Three feature families meet on the anchors (ViSA, first stage): `F_sem` (tokens of the photo), `F_vis` (fine local
detail, sampled where the anchor projects) and `F_prior` (a learned embedding of each anchor). Colours start as the
photo's own (`networks.photo_colour`); the heads learn what to change.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visa.networks.anatomy import Kind, Region
from visa.networks.anchors import Anchors
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel
from visa.networks.encoders import SemanticEncoder, VisualEncoder
from visa.networks.gaussians import Gaussians
from visa.networks.photo import Photo
from visa.networks.photo_colour import at_outline, colour_sources, diffused, filled_colours, lid_colours
from visa.networks.photo_layers import with_photo
from visa.networks.precision import full_precision
from visa.networks.projection import project
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.rotation import quaternion_multiply
from visa.networks.template import Template

# Most that the network changes the colour of eyeballs and the mouth's inside, and of lids and of a head that the photo
# does not show: what it guesses of a far cheek or of hair can be a stain, and of an open lid the iris beside it.
INNER_CHANGE, HIDDEN_CHANGE = 0.1, 0.05

# B photos, N anchors, K clusters of anchors, D channels.


class CrossBlock(nn.Module):
    """Transformer block: anchor clusters attend to each other, then to the photo's tokens of `context_width`."""

    def __init__(self, width: int, num_heads: int, context_width: int) -> None:
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(
            width, num_heads, kdim=context_width, vdim=context_width, batch_first=True
        )
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """`tokens [B,K,D]`, `context [B,L,context_width]` -> `[B,K,D]`."""
        normed = self.norm_self(tokens)
        tokens = tokens + self.self_attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.cross_attention(self.norm_cross(tokens), context, context, need_weights=False)[0]
        return tokens + self.ffn(self.norm_ffn(tokens))


class GaussianReconstructor(nn.Module):
    """Photo -> `Avatar`.

    Args:
        body: the body model (held outside the state dict; its file is its own asset).
        template: anchors, see `networks.template`.
        feature_channels: C of the 3D-aware feature.
        options: sizes and encoders; None for the embedded size.
    """

    def __init__(
        self,
        body: BodyModel,
        template: Template,
        feature_channels: int = 16,
        options: ReconstructorOptions | None = None,
    ) -> None:
        super().__init__()
        self.options = options = options or ReconstructorOptions()
        self.anchors = Anchors(body, template, options.num_clusters, options.gaussians_per_anchor)
        self.feature_channels, width = feature_channels, options.width
        self.semantic = SemanticEncoder(width=width) if options.semantic is None else options.semantic
        self.visual = VisualEncoder() if options.visual is None else options.visual
        self.prior = nn.Parameter(torch.randn(self.anchors.num_vertices, options.prior_channels) * 0.02)
        self.cluster_prior = nn.Parameter(torch.randn(len(self.anchors.cluster_points), width) * 0.02)
        sampled = self.visual.width + 3 + 1  # F_vis, filled colour, visibility
        self.token_in = nn.Linear(sampled + 3, width)
        self.blocks = nn.ModuleList(
            CrossBlock(width, options.num_heads, self.semantic.width) for _ in range(options.num_layers)
        )
        self.token_out = nn.Linear(width, width // 2)
        local = sampled + 3 + options.prior_channels + width // 2
        self.anchor = nn.Sequential(nn.Linear(local, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        # Offset 3, log scale 3, rotation 3, opacity 1, colour 3, features C, trust in the photo 1: zeros leave the
        # template as projected.
        self.heads = nn.Linear(width, 14 + feature_channels)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    @property
    def body(self) -> BodyModel:
        """The body model, moved to this network's device."""
        return self.anchors.body

    @full_precision
    def forward(self, photo: Photo, use_heads: bool = True) -> tuple[Avatar, Tensor]:
        """Reconstruct.

        Args:
            photo: tracked photos of B people.
            use_heads: False leaves the template with the photo's projected colours, the baseline of no
                learning, without loose and surface Gaussians.

        Returns:
            the avatar `[B,...]` and the photo's semantic tokens `[B,L,D]` (`F_sem`, which the shader attends to).
        """
        anchors, options = self.anchors, self.options
        projection = project(anchors, photo)
        semantic = self.semantic(photo.image, photo.mask)
        detail = self.visual(photo.image, photo.mask)
        grid = projection.grid[:, :, None]
        sampled = F.grid_sample(detail, grid, padding_mode="border", align_corners=False)[..., 0].mT
        colors = F.grid_sample(photo.image, grid, padding_mode="border", align_corners=False)[..., 0].mT
        colors = lid_colours(anchors, colors, projection.visible)
        sources = colour_sources(anchors, photo, projection.grid, colors, projection.visible, projection.facing)
        filled = filled_colours(anchors, colors, projection.visible, sources)
        visible = projection.visible[..., None]
        sampled = sampled * visible * float(options.use_visual)
        local = torch.cat([sampled, filled * 2 - 1, visible, projection.normals], dim=-1)
        tokens = self._cluster_tokens(local, semantic)
        prior = (self.prior[anchors.prior_row] * float(options.use_prior)).expand(local.shape[0], -1, -1)
        spread = (self.token_out(tokens)[:, anchors.blend_index] * anchors.blend_weight[..., None]).sum(dim=2)
        raw = self.heads(self.anchor(torch.cat([local, prior, spread], dim=-1)))
        if not use_heads:
            raw = torch.zeros_like(raw)
        outline = at_outline(anchors, photo, projection.grid, projection.visible, sources)
        filled = torch.where(outline[..., None], diffused(anchors, colors, sources), filled)
        avatar, trust = self._changed(photo, raw, filled, projection.visible * ~outline)
        return with_photo(anchors, avatar, photo, projection, trust, options, is_lifted=use_heads), semantic

    def _cluster_tokens(self, local: Tensor, semantic: Tensor) -> Tensor:
        """`[B,K,D]`: anchors' features averaged by cluster, with `F_prior`, through the transformer."""
        batch, _, channels = local.shape
        cluster_of, num_clusters = self.anchors.cluster_of, len(self.anchors.cluster_points)
        index = cluster_of[None, :, None].expand(batch, -1, channels)
        sums = local.new_zeros(batch, num_clusters, channels).scatter_add_(1, index, local)
        counts = torch.bincount(cluster_of, minlength=num_clusters).clamp_min(1).to(local.dtype)
        tokens = self.token_in(sums / counts[None, :, None]) + self.cluster_prior * float(self.options.use_prior)
        context = semantic if self.options.use_semantic else torch.zeros_like(semantic)
        for block in self.blocks:
            tokens = block(tokens, context)
        return tokens

    def _changed(self, photo: Photo, raw: Tensor, filled: Tensor, visible: Tensor) -> tuple[Avatar, Tensor]:
        """The template in colours `filled [B,N,3]`, changed as the heads' output `raw [B,N,14+C]` says.

        Colours of a head that the photo does not show, where `visible [B,N]` is 0, change little, and so do lids'.

        Returns:
            the avatar without the photo, and the trust in the photo's pixels `[B,N]`.
        """
        anchors, bare = self.anchors, self.bare(photo)
        offset, scale, turn, opacity, colour, features, trust = raw.split(
            [3, 3, 3, 1, 3, self.feature_channels, 1], dim=-1
        )
        quaternion = F.normalize(torch.cat([torch.ones_like(opacity), 0.5 * turn], dim=-1), dim=-1)
        is_head = (anchors.region == int(Region.FACE)) | (anchors.region == int(Region.SCALP))
        is_held = ((visible == 0) & is_head) | anchors.is_lid
        bounded = torch.where(is_held[..., None], HIDDEN_CHANGE * torch.tanh(colour / HIDDEN_CHANGE), colour)
        bounded = torch.where(anchors.is_inner[:, None], INNER_CHANGE * torch.tanh(colour), bounded)
        opacity = torch.sigmoid(opacity[..., 0] + math.log(0.9 / 0.1))
        # Smaller lids let the eyeball through, and smaller skin the mouth's inside, which a larger one draws over it.
        is_closed = anchors.is_lid | (anchors.kind == int(Kind.FACE))
        scale = torch.where(is_closed[:, None], scale.clamp_min(0), scale)
        scale = torch.where((anchors.kind == int(Kind.CAVITY))[:, None], scale.clamp_max(0), scale)
        gaussians = Gaussians(
            means=bare.gaussians.means + anchors.offset_bound[:, None] * torch.tanh(offset),
            quats=quaternion_multiply(bare.gaussians.quats, quaternion),
            scales=(anchors.log_scale + 1.5 * torch.tanh(scale)).exp(),
            opacities=anchors.least_opacity + (1 - anchors.least_opacity) * opacity,
            colors=filled + bounded,
            features=features,
        )
        return replace(bare, gaussians=gaussians), torch.sigmoid(trust[..., 0] + 2)

    def bare(self, photo: Photo) -> Avatar:
        """The template in the person's shape, opaque and without colour."""
        rest = self.anchors(photo.body.betas)
        batch, num = rest.shape[:2]
        gaussians = Gaussians(
            means=rest,
            quats=self.anchors.frames.expand(batch, num, 4),
            scales=self.anchors.log_scale.exp().expand(batch, num, 3),
            opacities=rest.new_full((batch, num), 0.95),
            colors=torch.zeros_like(rest),
            features=rest.new_zeros(batch, num, 0),
        )
        return Avatar(
            gaussians=gaussians,
            betas=photo.body.betas,
            vertex_ids=self.anchors.template.vertex_ids.to(rest.device),
            background=photo.background,
        )
