"""Fitted avatars on disk: each is made once of its photo, and read from then on."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from visa.networks.avatar import Avatar
from visa.networks.avatar_batch import stack_avatars
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.photo import Photo
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.runtime.avatar_files import FORMAT, body_fingerprint, load_avatar, save_avatar

# Raise it with any change of the code that makes another avatar of the same photo: older entries are then made anew.
VERSION = 13


class AvatarCache:
    """Photo -> fitted avatar, made at most once.

    An entry is found by what it is made of: a hash of the photo as the network reads it (pixels, matte, track, camera,
    background, and so clip, frame and resolution), of the network's weights and constants, of the body model, and of
    the options of network and fit. A file that is broken or of another key is made anew. Entries are moved into place
    whole: processes may share a folder, on one machine or many, and may be killed at any time.

    Args:
        folder: of the entries; made when the first is written.
        reconstructor: with its weights loaded; they must not change afterwards.
        options: what the reconstructor was built with.
        fit: how avatars are fitted.
        body_name: file name of the body model, for messages.

    Attributes:
        num_made: entries that this object has made.
    """

    def __init__(
        self,
        folder: str | Path,
        reconstructor: GaussianReconstructor,
        options: ReconstructorOptions,
        fit: FitOptions,
        body_name: str,
    ) -> None:
        if fit.steps == 0:
            raise ValueError("avatar_cache keeps fitted avatars, but fit.steps is 0: raise it, or leave the cache away")
        self.folder, self.reconstructor, self.options, self.fit = Path(folder), reconstructor, options, fit
        self.body_name, self.num_made = body_name, 0

    @functools.cached_property
    def _maker(self) -> str:
        """Hash of all that makes avatars but the photo."""
        network = self.reconstructor
        words = [FORMAT, str(VERSION), body_fingerprint(network.body), repr(self.options), repr(self.fit)]
        # Keys of entries on disk name the anchors' constants without their module.
        constants = [(name.removeprefix("anchors."), value) for name, value in network.named_buffers()]
        named = sorted([*network.named_parameters(), *constants])
        return _digest([value for _, value in named], words + [name for name, _ in named])

    def path(self, photo: Photo) -> Path:
        """File of one person's avatar, whether it is there or not; its stem is the key."""
        values = [photo.image, photo.mask, photo.intrinsics, photo.world_to_camera, photo.background]
        key = _digest([*values, *photo.body.tensors()], [self._maker])
        return self.folder / key[:2] / f"{key}.safetensors"

    def __call__(self, photo: Photo) -> Avatar:
        """Fitted avatars `[B,...]` of photos `[B,...]`, on the reconstructor's device."""
        return stack_avatars([self._one(_person(photo, index)) for index in range(len(photo.image))])

    def _one(self, photo: Photo) -> Avatar:
        path, body = self.path(photo), self.reconstructor.body
        try:
            return load_avatar(path, body, key=path.stem)
        except ValueError:  # not there, broken or foreign
            save_avatar(path, self._made(photo), body, self.body_name, key=path.stem)
        self.num_made += 1
        return load_avatar(path, body, key=path.stem)  # whoever wrote last: all processes see one avatar

    def _made(self, photo: Photo) -> Avatar:
        network, was_training = self.reconstructor, self.reconstructor.training
        network.eval()  # attention takes another path in training, with other last bits
        try:
            with torch.no_grad():
                avatar, _ = network(photo)
            return fit_avatar(network, avatar, photo, self.fit)
        finally:
            network.train(was_training)


def _person(photo: Photo, index: int) -> Photo:
    """One person of a batch, `[1,...]`."""
    one = {name: value[index : index + 1] for name, value in vars(photo).items() if isinstance(value, Tensor)}
    return replace(photo, body=photo.body[index : index + 1], **one)


def _digest(tensors: Iterable[Tensor], words: Iterable[str]) -> str:
    """32 hexadecimal digits of SHA-256."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(f"{len(word)}:{word}".encode())
    for value in tensors:
        digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
