"""Offline preparation: body model, tracking, latent statistics."""
