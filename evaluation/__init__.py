"""Measures of image quality, identity, time and sharpness."""
