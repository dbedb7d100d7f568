"""Sources of signals: recordings, lines, packets, and what is refused without an end of the stream."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from visa.live.blendshapes import Blendshapes
from visa.live.inputs import (
    Moment,
    OscReceiver,
    csv_moments,
    json_moments,
    json_signal,
    paced,
    timecode,
    video_moments,
)
from visa.live.signal import Signal, named_signal
from visa.networks.body import BodyModel, BodyParams
from visa.runtime.shipped import BODY


@pytest.fixture(scope="module")
def shapes() -> Blendshapes:
    return Blendshapes(BodyModel.from_file(ROOT / BODY))


def value(moment: Moment, shapes: Blendshapes, name: str) -> float:
    assert moment.signal is not None, moment.error
    return round(float(moment.signal.values[shapes.names.index(name)]), 6)


def test_a_timecode_counts_sixty_frames_a_second() -> None:
    assert timecode("01:02:03:30.000") == 3723.5
    with pytest.raises(ValueError, match="is no timecode"):
        timecode("12")


def recording(path: Path, rows: list[str]) -> Path:
    head = "Timecode,BlendShapeCount,EyeBlinkLeft,JawOpen,HeadYaw,HeadPitch,HeadRoll,LeftEyeYaw"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_a_recording_of_a_phone_drives(tmp_path: Path, shapes: Blendshapes) -> None:
    rows = [
        "10:00:00:00.0,61,0.25,0.5,0.1,0.2,0.3,0.0",
        "10:00:00:03.0,61,0.0,oops,0,0,0,0",
        "10:00:00:06.0,61,1,0,0,0,0,0",
    ]
    found = list(csv_moments(recording(tmp_path / "take.csv", rows), shapes))
    assert [round(moment.time, 6) for moment in found] == [0.0, 0.05, 0.1]
    assert (value(found[0], shapes, "eyeBlinkLeft"), value(found[0], shapes, "jawOpen")) == (0.25, 0.5)
    assert found[0].signal is not None
    torch.testing.assert_close(found[0].signal.turn, torch.tensor([0.2, 0.1, 0.3]))
    assert found[1].signal is None
    assert "oops" in str(found[1].error)
    assert value(found[2], shapes, "eyeBlinkLeft") == 1.0


@pytest.mark.parametrize(("text", "message"), [("a,b\n1,2\n", "is no recording"), ("", "is no recording")])
def test_other_tables_are_refused(text: str, message: str, tmp_path: Path, shapes: Blendshapes) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(csv_moments(path, shapes))
    with pytest.raises(ValueError, match="holds no row"):
        list(csv_moments(recording(path, []), shapes))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no JSON"), ("[1]", "no JSON object"), ('{"jawOpen": "wide"}', "jawOpen is no number"),
        ('{"jawOpen": true}', "jawOpen is no number"), ('{"ears": 1}', "ears is no ARKit blendshape"),
        ('{"HeadYaw": 9}', "give rad"), ('{"HeadYaw": NaN}', "give rad"), ('{"jawOpen": NaN}', "not finite"),
    ],
)  # fmt: skip
def test_bad_lines_are_refused_and_the_next_one_counts(line: str, message: str, shapes: Blendshapes) -> None:
    with pytest.raises(ValueError, match=message):
        json_signal(line, shapes)
    found = list(json_moments(io.StringIO(f'{line}\n\n{{"jawOpen": 0.5}}\n'), shapes))
    assert message in str(found[0].error)
    assert value(found[1], shapes, "jawOpen") == 0.5


def test_packets_drive_and_bad_ones_are_refused(shapes: Blendshapes) -> None:
    client = pytest.importorskip("pythonosc.udp_client", reason="the extra live is not installed")
    receiver = OscReceiver(0, shapes)
    try:
        phone, moments = client.SimpleUDPClient("127.0.0.1", receiver.port), iter(receiver)
        phone.send_message("/jawOpen", 0.5)
        assert value(next(moments), shapes, "jawOpen") == 0.5
        phone.send_message("/earWiggle", 1.0)
        assert "earWiggle is no ARKit blendshape" in str(next(moments).error)
        phone.send_message("/HeadYaw", [])
        assert next(moments).error is not None
        phone.send_message("/VMC/Ext/Blend/Val", ["eyeBlinkLeft", 0.25])
        phone.send_message("/VMC/Ext/Blend/Apply", [])
        both = next(moments)
        assert (value(both, shapes, "jawOpen"), value(both, shapes, "eyeBlinkLeft")) == (0.5, 0.25)
    finally:
        receiver.close()


def test_moments_come_in_their_time(clip_path: Path) -> None:
    found = list(paced((t, lambda t=t: Moment(0.0, t)) for t in (0.0, 0.05, 0.1)))
    assert [moment.time for moment in found] == [0.0, 0.05, 0.1]
    moments = video_moments(clip_path)
    first, second = next(moments), next(moments)
    assert second.arrived - first.arrived > 0.02
    assert first.frame is not None
    assert first.frame.shape == (72, 96, 3)


def test_a_signal_is_taken_against_a_neutral_one_and_posed(shapes: Blendshapes) -> None:
    neutral = named_signal(shapes, {"jawOpen": 0.2, "browDownLeft": 0.5, "HeadYaw": 0.1})
    now = named_signal(shapes, {"jawOpen": 0.6, "HeadYaw": 0.3}).against(neutral)
    assert float(now.values.sum()) == pytest.approx(0.4)  # a brow below its neutral place is at rest
    base = BodyParams.zeros((1,), 40)
    posed = Signal(now.values, now.turn, torch.tensor([[0.1, 0.2], [0.3, 0.4]]), torch.tensor([0.0, 0.1, 0.0])).posed(
        base, shapes
    )
    assert float(posed.jaw_pose[0, 0]) == pytest.approx(0.4 * 0.35)
    assert posed.leye_pose[0].tolist() == pytest.approx([0.1, 0.2, 0.0])
    assert posed.reye_pose[0].tolist() == pytest.approx([0.3, 0.4, 0.0])
    assert posed.transl[0].tolist() == pytest.approx([0.0, 0.1, 0.0])
    assert posed.body_pose[0, (11, 14), 1].tolist() == pytest.approx([0.1, 0.1])
