"""Files on disk: whole or absent, photos, video and sound, weights, configs, provenance; errors told in one line."""
