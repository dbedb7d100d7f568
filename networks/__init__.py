"""Architectures: body, encoders, reconstructor, rasterizer, codec, shader, rollout, discriminator."""
