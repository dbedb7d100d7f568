"""Files on disk: whole or absent, photos, video and sound, weights, configs, provenance."""
