"""Tracks and motion of other tools -> our `NAME.track.npz` (docs/import_tracks.md says what each field becomes)."""
