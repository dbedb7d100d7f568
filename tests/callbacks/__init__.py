"""Tests of callbacks/."""
