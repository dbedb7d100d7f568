"""Use of trained weights: load an avatar, stream frames, view, export."""
