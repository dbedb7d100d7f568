"""`visa view PHOTO|AVATAR [--driving TRACK...]`: an avatar in the browser (extra `viewer`)."""

from __future__ import annotations

import argparse
import functools
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from visa.artifacts.command_line import one_line_errors
from visa.live.performer import LOOKS, Look
from visa.live.shading import load_shading
from visa.person import Person
from visa.viewer.session import Session

THREADS = "of the drawing; more wait for each other where others are at work (default: %(default)s)"


class Viewer:
    """The server: a session for each client.

    Args:
        person: whom clients see first.
        driving: videos with tracks, or tracks, of the play list.
        size: px of the pictures.
        look: that clients start with.
        host: address to listen on.
        port: the first one tried; 0 takes any.

    Raises:
        ValueError: the extra `viewer` is not installed.
    """

    def __init__(
        self,
        person: Person,
        driving: Sequence[str | Path] = (),
        size: int = 512,
        look: Look = "textured",
        host: str = "127.0.0.1",
        port: int = 8080,
    ) -> None:
        try:
            import viser
        except ImportError as error:
            raise ValueError("the viewer needs the package viser: run `pip install '.[viewer]'`") from error
        motions = {Path(path).name.split(".")[0]: Path(path) for path in driving}
        if missing := [str(path) for path in motions.values() if not path.is_file()]:
            raise ValueError(f"no file at {missing[0]}: check --driving")
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        shading = functools.cache(load_shading)
        self.server = viser.ViserServer(host=host, port=port, label="visa", verbose=False)

        @self.server.on_client_connect
        def _(client: Any) -> None:
            session = Session(client, person, motions, size, look, shading)
            with self._lock:
                self._sessions[client.client_id] = session

        @self.server.on_client_disconnect
        def _(client: Any) -> None:
            with self._lock:
                session = self._sessions.pop(client.client_id, None)
            if session is not None:
                session.close()

    @property
    def sessions(self) -> list[Session]:
        """Of the clients that are there."""
        with self._lock:
            return list(self._sessions.values())

    @property
    def address(self) -> str:
        """To open in a browser."""
        return f"http://{self.server.get_host()}:{self.server.get_port()}"

    def close(self) -> None:
        """End all sessions and the server."""
        for session in self.sessions:
            session.close()
        self.server.stop()


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="visa view", description=__doc__)
    parser.add_argument("image", nargs="+", help="photo or photos of the person, a clip, or a .safetensors avatar")
    parser.add_argument("--driving", nargs="*", default=[], help="videos with tracks, or .track.npz, to play")
    parser.add_argument("--size", type=int, default=512, help="px of the picture (default: %(default)s)")
    parser.add_argument("--look", choices=LOOKS, default="textured", help="to start with (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s, or the next free one")
    parser.add_argument("--threads", type=int, choices=range(1, 257), metavar="N", default=1, help=THREADS)
    given = parser.parse_args(arguments)
    viewer = Viewer(Person.open(given.image, given.size), given.driving, given.size, given.look, given.host, given.port)
    torch.set_num_threads(given.threads)
    print(f"{viewer.address} (Ctrl+C ends)")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        viewer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
