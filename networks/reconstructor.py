"""Feed-forward reconstruction: one tracked photo -> a canonical Gaussian avatar on the template.

Three feature families meet on the anchors (ViSA, first stage): `F_sem` (tokens of the photo), `F_vis` (fine local
detail, sampled where the anchor projects) and `F_prior` (a learned embedding of each anchor). Anchors the photo does
not show take their colour from their mirrored counterpart, else from the nearest seen part of the body, so that the
untrained network already gives an avatar in the person's own colours; the heads learn what to change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visa.networks.anatomy import Kind, Region, read_anatomy
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel
from visa.networks.continuation import continued, median_color, opened, without_alike
from visa.networks.encoders import DinoEncoder, SemanticEncoder, VisualEncoder, WanVisualEncoder
from visa.networks.gaussians import Gaussians, concatenated
from visa.networks.loose import GRID, TemplateInPhoto, lift_loose
from visa.networks.photo import Photo
from visa.networks.precision import full_precision
from visa.networks.rasterizer.mesh import view_mesh
from visa.networks.regions import part_code
from visa.networks.rotation import matrix_to_quaternion, quaternion_multiply
from visa.networks.skin import SkinTone, before_trunk, skin_tone
from visa.networks.surface import cell_size, lift_surface
from visa.networks.template import Template, refine_template
from visa.networks.texture import Pattern, Texture, image_places, shown_part

VISIBLE_WITHIN = 0.003  # m
LEAST_FACING = 0.15  # cosine between an anchor's normal and the view
MESH_OVERSAMPLING = 4  # z-buffer's pixels along one of the photo's
FOREARM_JOINTS = (18, 19)
CHEST_JOINTS = (0, 3, 6, 9)  # without shoulders and neck: what lies before these is hair or their own skin
EDGE = 1 / 128  # share of the photo's side: colours so near the matte's edge hold what lies behind
LEAST_SEEN = 20  # anchors of hands in the colour of skin, from which on they stand for the others
LEAST_CLOTH = 0.5  # share of what the photo shows of a trunk, from which on it is clothed below the neckline too
LEAST_OPEN = 0.12  # share of an eyeball's disc that a photo must show: a half with open lids, a quarter when squinting
DIFFUSION_STEPS = 100  # of Jacobi's iteration
INNER_CHANGE = 0.1  # most that the network changes the colour of eyeballs and the mouth's inside

# B photos, N anchors, K clusters of anchors, D channels.


@dataclass
class Projection:
    """Where the anchors lie in the photo.

    Attributes:
        grid: `[B,N,2]` coordinates of `grid_sample` (align_corners false).
        visible: `[B,N]` 1 where the photo shows the anchor, else 0.
        normals: `[B,N,3]` unit normals in the camera's axes.
        before: `[B,1,H,W]` 1 where the photo shows hands before the trunk that the template has elsewhere, else 0.
        depth: `[B,1,H,W]` m, of the posed template; 0 where there is none.
        cloth: `[B,H,W]` bool, pixels of the clothes of trunk and arms.
        tone: the colour of the person's skin.
    """

    grid: Tensor
    visible: Tensor
    normals: Tensor
    before: Tensor
    depth: Tensor
    cloth: Tensor
    tone: SkinTone


@dataclass
class ReconstructorOptions:
    """Sizes and encoders of a `GaussianReconstructor`; the defaults are the embedded size.

    Attributes:
        width: channels of cluster tokens.
        num_clusters: K.
        num_layers: transformer blocks over the clusters.
        num_heads: attention heads of each; they divide `width`.
        prior_channels: channels of `F_prior`.
        semantic: encoder of `F_sem`; None for the small one.
        visual: encoder of `F_vis`; None for the small one.
        use_semantic, use_visual, use_prior: switch a feature family off, to measure what it earns.
        use_hull: what projects outside of the photo's matte is transparent; False for the same reason.
        use_loose: lift what the photo shows beside the template (`networks.loose`); False for the same reason.
        gaussians_per_anchor: Gaussians of each vertex of face and hands; 1 gives them as many as the rest.
        pixels_per_gaussian: side in px of the photo's cells that become Gaussians of their own (`networks.surface`), on
            the template's surface and as loose ones; 0 for none on the surface, None for 2 px in photos above 128 px.
    """

    width: int = 128
    num_clusters: int = 512
    num_layers: int = 2
    num_heads: int = 4
    prior_channels: int = 16
    semantic: SemanticEncoder | DinoEncoder | None = None
    visual: VisualEncoder | WanVisualEncoder | None = None
    use_semantic: bool = True
    use_visual: bool = True
    use_prior: bool = True
    use_hull: bool = True
    use_loose: bool = True
    gaussians_per_anchor: int = 1
    pixels_per_gaussian: float | None = None


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
        width: channels of cluster tokens.
        num_clusters: K; anchors share tokens by cluster, and a per-anchor network adds the detail.
        num_layers: transformer blocks over the clusters.
        num_heads: attention heads of each.
        prior_channels: channels of `F_prior`.
        semantic, visual: encoders of `F_sem` and `F_vis`; None for the small ones.
        use_semantic, use_visual, use_prior: switch a feature family off, to measure what it earns.
        use_hull: what projects outside of the photo's matte is transparent; False for the same reason.
        use_loose: lift what the photo shows beside the template (`networks.loose`); False for the same reason.
        gaussians_per_anchor: Gaussians of each vertex of face and hands, spread over the triangles around it; 1 gives
            them as many as the rest. They share the vertex's row of `F_prior`: weights fit any number.
        pixels_per_gaussian: side in px of the photo's cells that become Gaussians of their own (`networks.surface`), on
            the template's surface and as loose ones; 0 for none on the surface, None for 2 px in photos above 128 px.
        max_offset: largest move of a Gaussian from its anchor, metres.
    """

    def __init__(
        self,
        body: BodyModel,
        template: Template,
        feature_channels: int = 16,
        width: int = 128,
        num_clusters: int = 512,
        num_layers: int = 2,
        num_heads: int = 4,
        prior_channels: int = 16,
        semantic: SemanticEncoder | DinoEncoder | None = None,
        visual: VisualEncoder | WanVisualEncoder | None = None,
        use_semantic: bool = True,
        use_visual: bool = True,
        use_prior: bool = True,
        use_hull: bool = True,
        use_loose: bool = True,
        gaussians_per_anchor: int = 1,
        pixels_per_gaussian: float | None = None,
        max_offset: float = 0.12,
    ) -> None:
        super().__init__()
        self._body = [body]  # in a list: a submodule's buffers would enter every checkpoint
        vertices = template.vertex_ids
        if gaussians_per_anchor != 1:
            template = refine_template(template, body, gaussians_per_anchor)
        row = torch.zeros(len(body.v_template), dtype=torch.long).index_put_((vertices,), torch.arange(len(vertices)))
        self.register_buffer("prior_row", row[template.vertex_ids], persistent=False)
        self.template, self.feature_channels, self.max_offset = template, feature_channels, max_offset
        self.use_semantic, self.use_visual = use_semantic, use_visual
        self.use_prior, self.use_hull, self.use_loose = use_prior, use_hull, use_loose
        self.pixels_per_gaussian = pixels_per_gaussian
        self.semantic = SemanticEncoder(width=width) if semantic is None else semantic
        self.visual = VisualEncoder() if visual is None else visual
        self._build_geometry(num_clusters, vertices)
        num_clusters = len(self.cluster_points)
        self.prior = nn.Parameter(torch.randn(len(vertices), prior_channels) * 0.02)
        self.cluster_prior = nn.Parameter(torch.randn(num_clusters, width) * 0.02)
        sampled = self.visual.width + 3 + 1  # F_vis, filled colour, visibility
        self.token_in = nn.Linear(sampled + 3, width)
        self.blocks = nn.ModuleList(CrossBlock(width, num_heads, self.semantic.width) for _ in range(num_layers))
        self.token_out = nn.Linear(width, width // 2)
        self.anchor = nn.Sequential(
            nn.Linear(sampled + 3 + prior_channels + width // 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        # Offset 3, log scale 3, rotation 3, opacity 1, colour 3, features C, trust in the photo 1: zeros leave the
        # template as projected.
        self.heads = nn.Linear(width, 14 + feature_channels)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    @property
    def body(self) -> BodyModel:
        """The body model, moved to this network's device."""
        if self._body[0].v_template.device != self.prior.device:
            self._body[0] = self._body[0].to(self.prior.device)
        return self._body[0]

    def _build_geometry(self, num_clusters: int, vertices: Tensor) -> None:
        """Constants of the template: frames and sizes of the Gaussians, clusters, and how colour spreads among them.

        Clusters are made of the anchors' `vertices` alone: they are the same however many Gaussians a vertex has.
        """
        body, ids = self._body[0], self.template.vertex_ids
        points = self.template.points(body.v_template)
        normals = _vertex_normals(body.v_template, body.faces)[ids]
        spacing = _vertex_spacing(body.v_template, body.faces)[ids]
        if self.template.share is not None:
            spacing = spacing / self.template.share.to(spacing).sqrt()  # together they cover what one would
        self.register_buffer("frames", matrix_to_quaternion(_tangent_frames(normals)), persistent=False)
        self.register_buffer("normals", normals, persistent=False)
        flat = spacing[:, None] * points.new_tensor([0.5, 0.5, 0.2])
        self.register_buffer("log_scale", flat.clamp(1e-3, 3e-2).log(), persistent=False)
        centres = body.v_template[vertices[_farthest_points(body.v_template[vertices], num_clusters)]]
        distance = torch.cdist(points, centres)
        nearest = distance.topk(4, largest=False)
        weights = torch.softmax(-nearest.values / nearest.values.mean(dim=1, keepdim=True).clamp_min(1e-4) * 2, dim=1)
        self.register_buffer("cluster_of", nearest.indices[:, 0], persistent=False)
        self.register_buffer("blend_index", nearest.indices, persistent=False)
        self.register_buffer("blend_weight", weights, persistent=False)
        self.register_buffer("cluster_points", centres, persistent=False)
        between = torch.cdist(centres, centres)
        spread = torch.stack([torch.exp(-((between / sigma) ** 2)) for sigma in (0.02, 0.06, 0.2, 0.8)])
        self.register_buffer("spread", spread, persistent=False)
        self.register_buffer("mirror", self.template.mirror, persistent=False)
        first = torch.full((len(body.v_template),), len(ids)).scatter_reduce(0, ids, torch.arange(len(ids)), "amin")
        corner_rows = torch.where(first < len(ids), first, -1)[body.faces]
        self.register_buffer("corner_rows", corner_rows, persistent=False)  # [F,3] anchors on each triangle's corners
        self.register_buffer("part", part_code(body)[ids], persistent=False)
        self._build_anatomy(points)

    def _build_anatomy(self, points: Tensor) -> None:
        """Constants of what each anchor is part of: bounds, colours of what is hidden, and its neighbours."""
        body, ids = self._body[0], self.template.vertex_ids
        anatomy = read_anatomy(body)
        self.register_buffer("label", body.part[ids], persistent=False)
        self.register_buffer("face_label", body.part[body.faces[:, 0]], persistent=False)
        self.register_buffer("kind", anatomy.kind[ids], persistent=False)
        self.register_buffer("is_lid", anatomy.is_lid[ids], persistent=False)
        self.register_buffer("is_inner", anatomy.is_inner[ids], persistent=False)
        self.register_buffer("prior_color", anatomy.prior_color[ids], persistent=False)
        self.register_buffer("offset_bound", anatomy.offset_bound[ids].clamp(max=self.max_offset), persistent=False)
        self.register_buffer("least_opacity", anatomy.least_opacity[ids], persistent=False)
        self.register_buffer("region", anatomy.region[ids], persistent=False)
        apart = self.label * len(Region) + self.region
        self.register_buffer("face_region", anatomy.region[body.faces[:, 0]], persistent=False)
        chest = body.lbs_weights[:, list(CHEST_JOINTS)].sum(dim=1) > 0.5
        self.register_buffer("is_chest", chest[body.faces[:, 0]], persistent=False)
        forearms = body.lbs_weights[:, list(FOREARM_JOINTS)].sum(dim=1) > 0.5  # sleeves end, nobody knows where
        trunk = (anatomy.region == int(Region.TORSO)) | ((anatomy.region == int(Region.ARMS)) & ~forearms)
        self.register_buffer("is_trunk", trunk[ids], persistent=False)
        self.register_buffer("neighbours", _neighbours(points, apart), persistent=False)

    def anchors(self, betas: Tensor) -> Tensor:
        """Anchors `[B,N,3]` of people of shape `betas [B,10]` in the T-pose, metres."""
        neutral = betas.new_zeros(*betas.shape[:-1], self.body.num_expressions)
        if self.template.corners is None:
            return self.body.rest_vertices(betas, neutral, self.template.vertex_ids)
        return self.template.points(self.body.rest_vertices(betas, neutral))

    def project(self, photo: Photo) -> Projection:
        """Project the anchors and test their visibility against a z-buffer of the posed mesh.

        An anchor is seen where nothing lies more than VISIBLE_WITHIN before it, where the front triangle is of its own
        part (a tooth does not take the lip's pixel), where it faces the camera and the photo's matte holds it. What
        lies in the mouth is seen where it fills a pixel, and an eyeball where lids leave LEAST_OPEN of it: a chink
        between lips or lids has no colour of its own.
        """
        with torch.no_grad():
            vertices, _ = self.body(photo.body)
            means = self.template.points(vertices)
            camera = photo.world_to_camera
            height, width = photo.image.shape[-2:]
            fine = photo.intrinsics.clone()
            fine[:, :2] *= MESH_OVERSAMPLING
            view = view_mesh(
                vertices, self.body.faces, fine, camera, MESH_OVERSAMPLING * width, MESH_OVERSAMPLING * height
            )
            inside = (camera[:, None, :3, :3] @ means[..., None])[..., 0] + camera[:, None, :3, 3]
            grid = image_places(means, photo.intrinsics, camera, (height, width))
            ids = self.template.vertex_ids
            normals = _vertex_normals(vertices, self.body.faces)[:, ids] @ camera[:, :3, :3].mT

            def read(values: Tensor, right: float = 0.0, down: float = 0.0) -> Tensor:
                """At the anchors, or so many of the photo's pixels beside them."""
                places = grid[:, :, None] + grid.new_tensor([2 * right / width, 2 * down / height])
                return F.grid_sample(
                    values[:, None], places, mode="nearest", padding_mode="zeros", align_corners=False
                )[:, 0, :, 0]

            # The farthest of 3 x 3 pixels: at a grazing angle the surface falls by millimetres within one.
            depth = F.max_pool2d(torch.where(view.face < 0, 0.0, view.depth)[:, None], 3, 1, 1)[:, 0]
            is_uncovered, there = read((view.face < 0).float()) > 0.5, read(depth)
            labels = torch.where(view.face < 0, -1, self.face_label[view.face.clamp_min(0)]).float()
            label, half = read(labels), (-0.5, 0.0, 0.5)
            fills = torch.stack([read(labels, x, y) == label for x in half for y in half]).all(dim=0)
            covered = F.grid_sample(photo.mask, grid[:, :, None], mode="bilinear", align_corners=False)[:, 0, :, 0]
            facing = -(normals * F.normalize(inside, dim=-1)).sum(-1)
            in_front = is_uncovered | ((inside[..., 2] < there + VISIBLE_WITHIN) & (label == self.label))
            in_front &= ~self.is_inner | fills | ((self.kind == int(Kind.EYEBALL)) & self._is_open(labels, grid))
            visible = in_front & (facing > LEAST_FACING) & (covered > 0.8) & (grid.abs() < 1).all(-1)
            centre = MESH_OVERSAMPLING // 2
            coarse = view.face[:, centre::MESH_OVERSAMPLING, centre::MESH_OVERSAMPLING]
            tone, skin, before = self._skin(photo, grid, visible, coarse)
            cloth = self._cloth(photo, skin, before[:, 0] > 0.5, coarse)
            is_hidden = F.grid_sample(before, grid[:, :, None], mode="nearest", align_corners=False)[:, 0, :, 0] > 0.5
            visible &= ~(is_hidden & (self.region == int(Region.TORSO)))
            front = torch.where(view.face < 0, 0.0, view.depth)[:, None]
            front = front[..., centre::MESH_OVERSAMPLING, centre::MESH_OVERSAMPLING]
        return Projection(grid, visible.float(), normals, before, front, cloth, tone)

    def _is_open(self, labels: Tensor, grid: Tensor) -> Tensor:
        """`[B,N]` bool: anchors of eyeballs that lids leave open, by the front triangles' `labels [B,h,w]`."""
        is_open = torch.zeros(grid.shape[:2], dtype=torch.bool, device=grid.device)
        size = grid.new_tensor([labels.shape[-1], labels.shape[-2]]) / 2
        for index, name in enumerate(self.body.part_names):
            if name.startswith("eyeball"):
                mine = self.label == index
                places = grid[:, mine] * size
                extent = (places.amax(dim=1) - places.amin(dim=1)).clamp_min(1.0)
                area = math.pi / 4 * extent.prod(dim=1)
                share = (labels == index).flatten(1).sum(dim=1) / area
                is_open |= mine & (share > LEAST_OPEN)[:, None]
        return is_open

    def _skin(self, photo: Photo, grid: Tensor, visible: Tensor, face: Tensor) -> tuple[SkinTone, Tensor, Tensor]:
        """Its colour, its pixels `[B,H,W]`, and `Projection.before`; `face [B,H,W]` are the pixels' front triangles."""
        colors = F.grid_sample(photo.image, grid[:, :, None], padding_mode="border", align_corners=False)[..., 0].mT
        tone = skin_tone(colors, visible & (self.kind == int(Kind.FACE)))
        skin = tone.is_skin(photo.image.permute(0, 2, 3, 1)) & (photo.mask[:, 0] > 0.8)
        is_head = (self.face_region[face.clamp_min(0)] == int(Region.FACE)) & (face >= 0)
        is_chest = self.is_chest[face.clamp_min(0)] & (face >= 0)
        return tone, skin, before_trunk(skin, is_head, is_chest)[:, None].float()

    def _cloth(self, photo: Photo, skin: Tensor, before: Tensor, face: Tensor) -> Tensor:
        """`Projection.cloth`, by `skin` and `before [B,H,W]` and the front triangles `face [B,H,W]` of the pixels."""
        region = torch.where(face >= 0, self.face_region[face.clamp_min(0)], -1)
        is_own = (_eroded(photo.mask, 3)[:, 0] > 0.9) & ~skin
        trunk = is_own & ~before & ((region == int(Region.TORSO)) | (region == int(Region.ARMS)))
        hair, head = is_own & (region == int(Region.SCALP)), region == int(Region.FACE)
        return opened(without_alike(photo.image, trunk, [median_color(photo.image, part) for part in (hair, head)]))

    def _pattern(
        self, photo: Photo, projection: Projection, avatar: Avatar, places: Tensor, shown: Tensor
    ) -> Pattern | None:
        """Cloth of trunk and upper arms where they lie outside of the photo, or behind hands; bare ones have none.

        Args:
            photo: what the avatar is made of.
            projection: of it.
            avatar: with the colours of the anchors.
            places: `[B,N,2]` of the anchors in the photo.
            shown: `[B,N]` 1 where it shows them, else 0.
        """
        picture, has_any = continued(photo.image, projection.cloth)
        before = F.grid_sample(projection.before, places[:, :, None], mode="nearest", align_corners=False)[:, 0, :, 0]
        is_used = self.is_trunk & has_any[:, None] & (shown == 0) & ((before > 0) | (places.abs() > 1).any(dim=-1))
        is_used &= ~projection.tone.is_skin(avatar.gaussians.colors)
        return Pattern(picture, places, is_used.float()) if bool(is_used.any()) else None

    def bare(self, photo: Photo) -> Avatar:
        """The template in the person's shape, opaque and without colour."""
        rest = self.anchors(photo.body.betas)
        batch, num = rest.shape[:2]
        gaussians = Gaussians(
            means=rest,
            quats=self.frames.expand(batch, num, 4),
            scales=self.log_scale.exp().expand(batch, num, 3),
            opacities=rest.new_full((batch, num), 0.95),
            colors=torch.zeros_like(rest),
            features=rest.new_zeros(batch, num, 0),
        )
        return Avatar(
            gaussians=gaussians,
            betas=photo.body.betas,
            vertex_ids=self.template.vertex_ids.to(rest.device),
            background=photo.background,
        )

    def _fill(self, colors: Tensor, visible: Tensor, sources: Tensor) -> Tensor:
        """Colour of every anchor: seen, else the mirrored anchor's, else a distance-weighted mean of what is seen.

        Args:
            colors: `[B,N,3]` sampled from the photo.
            visible: `[B,N]`.
            sources: `[B,N]` see `sources`.
        """
        spread = torch.where(visible[..., None] > 0, colors, self.diffuse(colors, sources))
        return torch.where(
            self.is_inner[:, None] & (visible[..., None] == 0), self._inner_colors(colors, visible), spread
        )

    def sources(self, photo: Photo, grid: Tensor, colors: Tensor, visible: Tensor) -> Tensor:
        """`[B,N]` 1 where the colour of a seen anchor may stand for others, which the photo does not show.

        Not at the matte's edge, where colours are mixed with what lies behind. Hands take skin alone; a trunk of which
        the photo shows cloth takes no skin: the chest below a neckline is clothed.

        Args:
            photo: what shows the anchors.
            grid: `[B,N,2]` as `Projection.grid`.
            colors: `[B,N,3]` the photo's at the anchors.
            visible: `[B,N]`.
        """
        matte = _eroded(photo.mask)
        inside = F.grid_sample(matte, grid[:, :, None], padding_mode="border", align_corners=False)[:, 0, :, 0] > 0.8
        is_seen = visible > 0
        is_skin = skin_tone(colors, is_seen & (self.kind == int(Kind.FACE))).is_skin(colors)
        hands, trunk = self.region == int(Region.HANDS), self.region == int(Region.TORSO)
        found = is_seen & (inside | ~(hands | (self.region == int(Region.ARMS)))) & (is_skin | ~hands)
        found &= ~hands | ((found & hands).sum(dim=1, keepdim=True) >= LEAST_SEEN)
        cloth, most = (found & trunk & ~is_skin).sum(dim=1, keepdim=True), (found & trunk).sum(dim=1, keepdim=True)
        is_clothed = cloth >= LEAST_CLOTH * most
        return (found & ~(is_clothed & trunk & is_skin)).float()

    def _blend_seen(self, values: Tensor, visible: Tensor) -> Tensor:
        """`[B,N,3]`: means of what is seen of an anchor's region, weighted by the distance between clusters of anchors.

        A region of which nothing is seen takes the face's median, as hands do under sleeves; or that of all. Arms take
        the torso's cloth first.
        """
        everywhere = _mean_where(values, visible)
        is_face = (visible > 0) & (self.kind == int(Kind.FACE))
        face = torch.where(is_face[..., None], values, torch.nan).nanmedian(dim=1).values  # without brows and hair
        fallback = torch.where(is_face.any(dim=1, keepdim=True), face, everywhere)
        blended = fallback[:, None].expand_as(values)
        for region in Region:
            mine = self.region == int(region)
            seen = visible * mine
            has_any = (seen.sum(dim=1) > 0)[:, None, None]
            is_taken = mine | (self.region == int(Region.ARMS)) if region is Region.TORSO else mine
            blended = torch.where(is_taken[:, None] & has_any, self._blend(values, seen), blended)
        return blended

    def _blend(self, values: Tensor, seen: Tensor) -> Tensor:
        """`[B,N,3]`: means of `values` where `seen [B,N]`, weighted by the distance between clusters of anchors."""
        index = self.cluster_of[None, :, None]
        batch, num_clusters = values.shape[0], len(self.cluster_points)
        weighted = torch.cat([values * seen[..., None], seen[..., None]], dim=-1)
        sums = weighted.new_zeros(batch, num_clusters, 4).scatter_add_(1, index.expand(batch, -1, 4), weighted)
        total = sums.new_zeros(batch, num_clusters, 4)
        for kernel, share in zip(self.spread, (1.0, 1e-2, 1e-4, 1e-6), strict=True):
            total = total + share * (kernel @ sums)  # a wider kernel counts only where the narrower ones found nothing
        smooth = total[..., :3] / total[..., 3:].clamp_min(1e-9)
        return (smooth[:, self.blend_index] * self.blend_weight[..., None]).sum(dim=2)

    def diffuse(self, values: Tensor, visible: Tensor) -> Tensor:
        """Values `[B,N,D]` of what the photo shows, spread over what it does not: harmonic on the template's surface.

        An anchor whose mirrored counterpart is seen takes that one's; eyeballs and the mouth's inside take none.
        """
        seen = visible[..., None] > 0
        mirrored = visible[:, self.mirror][..., None] > 0
        start = self._blend_seen(values, visible)
        known = seen | mirrored
        values = torch.where(seen, values, torch.where(mirrored, values[:, self.mirror], start))
        for _ in range(DIFFUSION_STEPS):
            values = torch.where(known, values, values[:, self.neighbours].mean(dim=2))
        return torch.where(self.is_inner[:, None] & ~seen, torch.zeros_like(values), values)

    def _inner_colors(self, colors: Tensor, visible: Tensor) -> Tensor:
        """Colour `[B,N,3]` of eyeballs and the mouth's inside that nothing shows: anybody's, as bright as the face."""
        weight = visible * (self.kind == int(Kind.FACE))
        luminance = (colors.mean(dim=-1) * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1.0)
        return (self.prior_color * (2 * luminance[:, None, None]).clamp(0.3, 1.3)).clamp(0, 1)

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
        projection = self.project(photo)
        tokens_sem = self.semantic(photo.image, photo.mask)
        detail = self.visual(photo.image, photo.mask)
        grid = projection.grid[:, :, None]
        sampled = F.grid_sample(detail, grid, padding_mode="border", align_corners=False)[..., 0].mT
        colors = F.grid_sample(photo.image, grid, padding_mode="border", align_corners=False)[..., 0].mT
        sources = self.sources(photo, projection.grid, colors, projection.visible)
        filled = self._fill(colors, projection.visible, sources)
        visible = projection.visible[..., None]
        sampled = sampled * visible * float(self.use_visual)
        local = torch.cat([sampled, filled * 2 - 1, visible, projection.normals], dim=-1)
        tokens = self._cluster_tokens(local, tokens_sem)
        prior = (self.prior[self.prior_row] * float(self.use_prior)).expand(local.shape[0], -1, -1)
        spread = (self.token_out(tokens)[:, self.blend_index] * self.blend_weight[..., None]).sum(dim=2)
        raw = self.heads(self.anchor(torch.cat([local, prior, spread], dim=-1)))
        if not use_heads:
            raw = torch.zeros_like(raw)
        return self._avatar(photo, raw, filled, projection, lift=use_heads), tokens_sem

    def _cluster_tokens(self, local: Tensor, semantic: Tensor) -> Tensor:
        """`[B,K,D]`: anchors' features averaged by cluster, with `F_prior`, through the transformer."""
        batch, _, channels = local.shape
        index = self.cluster_of[None, :, None].expand(batch, -1, channels)
        sums = local.new_zeros(batch, len(self.cluster_points), channels).scatter_add_(1, index, local)
        counts = torch.bincount(self.cluster_of, minlength=len(self.cluster_points)).clamp_min(1).to(local.dtype)
        tokens = self.token_in(sums / counts[None, :, None]) + self.cluster_prior * float(self.use_prior)
        context = semantic if self.use_semantic else torch.zeros_like(semantic)
        for block in self.blocks:
            tokens = block(tokens, context)
        return tokens

    def _avatar(self, photo: Photo, raw: Tensor, filled: Tensor, projection: Projection, lift: bool) -> Avatar:
        """Read the heads' output `[B,N,14+C]` as changes of the coloured template; the photo becomes its texture."""
        bare = self.bare(photo)
        offset, scale, turn, opacity, colour, features, trust = raw.split(
            [3, 3, 3, 1, 3, self.feature_channels, 1], dim=-1
        )
        quaternion = F.normalize(torch.cat([torch.ones_like(opacity), 0.5 * turn], dim=-1), dim=-1)
        bounded = torch.where(self.is_inner[:, None], INNER_CHANGE * torch.tanh(colour), colour)
        opacity = torch.sigmoid(opacity[..., 0] + math.log(0.9 / 0.1))
        scale = torch.where(self.is_lid[:, None], scale.clamp_min(0), scale)  # smaller ones let the eyeball through
        gaussians = Gaussians(
            means=bare.gaussians.means + self.offset_bound[:, None] * torch.tanh(offset),
            quats=quaternion_multiply(bare.gaussians.quats, quaternion),
            scales=(self.log_scale + 1.5 * torch.tanh(scale)).exp(),
            opacities=self.least_opacity + (1 - self.least_opacity) * opacity,
            colors=filled + bounded,
            features=features,
        )
        avatar = replace(bare, gaussians=gaussians)
        return self._with_photo(avatar, photo, projection, torch.sigmoid(trust[..., 0] + 2), lift)

    def _with_photo(self, avatar: Avatar, photo: Photo, projection: Projection, trust: Tensor, lift: bool) -> Avatar:
        """The avatar with the photo as its texture, and with loose and surface Gaussians where `lift` says so.

        Opacities are cut to the photo's hull. Gradients flow to the avatar's Gaussians and to `trust [B,N]`.
        """
        with torch.no_grad():
            carried = avatar.pose(self.body, photo.body.map(lambda value: value[:, None]))
            posed = carried.map(lambda value: value[:, 0])
            camera, size = (photo.intrinsics, photo.world_to_camera), (photo.image.shape[-2], photo.image.shape[-1])
            places = image_places(posed.means, *camera, size)
            shown = projection.visible * (places.abs() < 1).all(-1)
            part, loose = self.part.expand_as(shown), None
            inside = _in_hull(places, photo.mask) if self.use_hull else torch.ones_like(shown)
            cell = cell_size(size[1], self.pixels_per_gaussian) if lift else 0.0
            grid, surface = round(size[1] / cell) if cell else 0, None
            if lift and self.use_loose:  # by the template before the hull cuts its rim, which is no hole to be filled
                transforms = self.body.joint_transforms(photo.body)[..., :3, :]
                weights = self.body.lbs_weights[avatar.vertex_ids]
                before, depth = projection.before, projection.depth
                template = TemplateInPhoto(posed, places, shown, weights, self.part, transforms, before, depth)
                lifted = lift_loose(template, photo.image, photo.mask, *camera, max(grid, GRID))
                loose = lifted.loose
                posed = concatenated([replace(posed, opacities=posed.opacities * inside), lifted.posed])
                places, part = torch.cat([places, lifted.places], dim=1), torch.cat([part, lifted.part], dim=1)
                shown = torch.cat([shown, torch.ones_like(lifted.part)], dim=1)
            if grid:
                on = lift_surface(avatar, self.body, self.corner_rows, photo, projection.before, grid)
                surface, code = on.surface, on.surface.mixed(self.part[None, None, :, None])[:, 0, :, 0]
                posed = concatenated([replace(posed, features=posed.features[..., :0]), on.posed])
                places, part = torch.cat([places, on.places], dim=1), torch.cat([part, code], dim=1)
                shown = torch.cat([shown, torch.ones_like(code)], dim=1)
            photo_part = shown_part(posed, shown, part, *camera, size)
            count = trust.shape[1]
            pattern = self._pattern(photo, projection, avatar, places[:, :count], shown[:, :count]) if lift else None
        trusts = [trust]
        if loose is not None:
            trusts.append(torch.ones_like(loose.gaussians.opacities))
        if surface is not None:
            trusts.append(surface.mixed(trust[:, None, :, None])[:, 0, :, 0])
            features = surface.mixed(avatar.gaussians.features[:, None])[:, 0]
            surface = replace(surface, gaussians=replace(surface.gaussians, features=features))
        texture = Texture(photo.image, photo.mask, places, shown, torch.cat(trusts, dim=1), part, photo_part)
        cut = replace(avatar.gaussians, opacities=avatar.gaussians.opacities * inside)
        return replace(avatar, gaussians=cut, texture=texture, loose=loose, surface=surface, pattern=pattern)


class FeatureDecoder(nn.Module):
    """Light decoder of the splatted maps to RGB: it gives the 3D-aware features something to mean in the first stage.

    The shader takes its place afterwards; no later stage uses it.
    """

    def __init__(self, feature_channels: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(feature_channels + 4, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, maps: Tensor, rgb: Tensor) -> Tensor:
        """`maps [M,C+4,H,W]` and splatted `rgb [M,3,H,W]` -> refined RGB `[M,3,H,W]`."""
        return rgb + self.layers(maps)


def _mean_where(values: Tensor, seen: Tensor) -> Tensor:
    """`[B,D]` mean of `values [B,N,D]` where `seen [B,N]`; zeros where nothing is."""
    return (values * seen[..., None]).sum(dim=1) / seen.sum(dim=1)[:, None].clamp_min(1.0)


def _eroded(matte: Tensor, times: int = 1) -> Tensor:
    """A matte `[B,1,H,W]` without the pixels at its edge."""
    reach = times * max(1, round(EDGE * matte.shape[-1]))
    return -F.max_pool2d(-matte, 2 * reach + 1, 1, reach)


def _in_hull(places: Tensor, matte: Tensor) -> Tensor:
    """`[B,N]` share by which Gaussians at `places [B,N,2]` of a photo with `matte [B,1,H,W]` belong to the person.

    The visual hull of one silhouette (Laurentini, 1994): what projects outside of the matte is not the person, behind
    a raised hand as well as before it. Of what lies outside of the picture the photo says nothing.
    """
    there = F.grid_sample(matte, places[:, :, None], padding_mode="border", align_corners=False)[:, 0, :, 0]
    return torch.where((places.abs() <= 1).all(dim=-1), there, 1.0)


def _vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """`[...,V,3]` area-weighted unit normals."""
    a, b, c = (vertices[..., faces[:, k], :] for k in range(3))
    face_normals = torch.cross(b - a, c - a, dim=-1)
    total = torch.zeros_like(vertices)
    for k in range(3):
        total.index_add_(-2, faces[:, k], face_normals)
    return F.normalize(total, dim=-1)


def _vertex_spacing(vertices: Tensor, faces: Tensor) -> Tensor:
    """`[V]` mean length of the edges at each vertex, metres."""
    total, count = vertices.new_zeros(len(vertices)), vertices.new_zeros(len(vertices))
    for k in range(3):
        first, second = faces[:, k], faces[:, (k + 1) % 3]
        length = (vertices[first] - vertices[second]).norm(dim=-1)
        for end in (first, second):
            total.index_add_(0, end, length)
            count.index_add_(0, end, torch.ones_like(length))
    return total / count.clamp_min(1)


def _neighbours(points: Tensor, label: Tensor, count: int = 6) -> Tensor:
    """`[N,count]` the nearest other anchors of the same part of the body."""
    found = []
    for first in range(0, len(points), 2048):
        distance = torch.cdist(points[first : first + 2048], points)
        distance = distance + 10.0 * (label[first : first + 2048, None] != label[None])
        found.append(distance.topk(count + 1, largest=False).indices[:, 1:])
    return torch.cat(found)


def _tangent_frames(normals: Tensor) -> Tensor:
    """`[N,3,3]` rotations whose third column is the normal."""
    helper = torch.where(
        normals[:, 1:2].abs() < 0.9, normals.new_tensor([[0.0, 1.0, 0.0]]), normals.new_tensor([[1.0, 0.0, 0.0]])
    )
    first = F.normalize(torch.cross(helper, normals, dim=-1), dim=-1)
    return torch.stack([first, torch.cross(normals, first, dim=-1), normals], dim=-1)


def _third_axis(quats: Tensor) -> Tensor:
    """Third column of the rotation of unit quaternions `[...,4]` -> `[...,3]`."""
    w, x, y, z = quats.unbind(-1)
    return torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], dim=-1)


def _farthest_points(points: Tensor, count: int) -> Tensor:
    """`[count]` indices of points far from each other, greedily from the first."""
    chosen = [0]
    distance = (points - points[0]).norm(dim=-1)
    for _ in range(min(count, len(points)) - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=-1))
    return torch.tensor(chosen)
