"""Reconstructors for the tests, built once: each call gives a copy of its own."""

from __future__ import annotations

import functools
from copy import deepcopy

import torch

from tests.conftest import ROOT
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.runtime.shipped import BODY, WEIGHTS, build_reconstructor, load_reconstructor


@functools.cache
def _built(remove_neck: bool, feature_channels: int, num_clusters: int) -> GaussianReconstructor:
    torch.manual_seed(0)
    return build_reconstructor(
        str(ROOT / BODY), remove_neck, feature_channels, ReconstructorOptions(num_clusters=num_clusters)
    )


@functools.cache
def _shipped() -> GaussianReconstructor:
    return load_reconstructor(str(ROOT / BODY), str(ROOT / WEIGHTS))


def untrained(remove_neck: bool, feature_channels: int, num_clusters: int = 512) -> GaussianReconstructor:
    """One that has learned nothing, as `build_reconstructor` gives it after `torch.manual_seed(0)`."""
    built = _built(remove_neck, feature_channels, num_clusters)
    torch.manual_seed(0)
    return deepcopy(built)


def shipped() -> GaussianReconstructor:
    """One with the shipped weights, as `load_reconstructor` gives it."""
    return deepcopy(_shipped())
