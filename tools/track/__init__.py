"""From a video or photo of a person to the clip contract: SMPL-X track, foreground mask, overlay and report."""
