"""Tests of artifacts/."""
