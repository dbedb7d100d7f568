"""Sizes and encoders of the reconstructor."""

from __future__ import annotations

from dataclasses import dataclass

from visa.networks.encoders import DinoEncoder, SemanticEncoder, VisualEncoder, WanVisualEncoder


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
        use_hull: the head goes to the outline that the photo shows (`networks.outline`), and what projects outside of
            its matte is transparent; False for the same reason.
        use_loose: lift what the photo shows beside the template (`networks.loose`); False for the same reason.
        gaussians_per_anchor: Gaussians of each vertex of face and hands, spread over the triangles around it; 1 gives
            them as many as the rest. They share the vertex's row of `F_prior`: weights fit any number.
        pixels_per_gaussian: side in px of the photo's cells that become Gaussians of their own (`networks.surface`), on
            the template's surface and as loose ones; 0 for none on the surface, None for 2 px. Photos of up to
            128 px have them (1.5 px) only where the template is not as dense, and their loose ones stay coarser.
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
