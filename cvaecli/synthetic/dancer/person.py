"""The person of the dancer set: smooth random motion, and the skeleton that it moves.

Joints are points in the room in metres (see ``room``). A pose is a set of channels: ``s`` (where the person
stands across the picture, from -1 at the left edge to 1 at the right), ``u`` (from 0 near to 1 far),
``heading`` and joint angles in degrees. With heading 0 the person looks into the camera, with 90 to the
right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cvaecli.synthetic.dancer.room import FOCAL, project

Array = npt.NDArray[np.float64]
Pose = dict[str, float]

NEAR, FAR = 2.7, 5.0  # metres from the camera to the nearest and farthest place to stand
SIDES = ("left", "right")
LIMBS = ("raise", "out", "roll", "elbow", "hip", "spread", "knee")
CHANNELS = (
    *("s", "u", "heading", "pitch", "bend", "twist", "nod", "look"),
    *(f"{side}_{joint}" for side in SIDES for joint in LIMBS),
)
STEP = 0.62  # metres per step
# Movement in the picture per frame, and the value that counts for standing still. Three times IDLE is more
# than TEMPO, so motion composed for three times the frames can never be too short.
TEMPO, IDLE = 0.0082, 0.0035


def _both(**angles: float) -> Pose:
    return {f"{side}_{joint}": angle for side in SIDES for joint, angle in angles.items()}


# Arms: raise to the front, out to the side, roll inwards, bend the elbow. Legs likewise.
STANDING: Pose = _both(**{"raise": 0.0}, out=12, roll=10, elbow=18, hip=2, spread=5, knee=4) | {
    "pitch": 2.0,
    "bend": 0.0,
    "twist": 0.0,
    "nod": 0.0,
    "look": 0.0,
}
ARM_POSES: tuple[Pose, ...] = (
    {},
    _both(out=88, elbow=8),
    _both(out=158, elbow=15),
    _both(out=85, roll=-85, elbow=85),
    _both(out=42, **{"raise": -18}, roll=75, elbow=95),
    _both(**{"raise": 85}, out=14, elbow=10),
    {"left_raise": 165, "left_elbow": 8, "right_out": 25},
    {"left_out": 95, "left_roll": -80, "left_elbow": 100, "right_out": 20},
    {"left_out": 150, "right_out": 60, "left_elbow": 10, "right_elbow": 10},
)
BODY_POSES: tuple[Pose, ...] = (
    _both(hip=92, knee=108, spread=16, **{"raise": 80}, elbow=8) | {"pitch": 32.0},
    _both(hip=60, knee=75, spread=25, out=85, elbow=10) | {"pitch": 15.0},
    _both(hip=18, knee=4, spread=8, **{"raise": 75}, elbow=5) | {"pitch": 72.0, "nod": 20.0},
    _both(spread=24, out=125, elbow=8),
    {"left_hip": 62, "left_knee": 68, "right_hip": -28, "right_knee": 22, **_both(out=70), "pitch": 8.0},
    {"left_spread": 20, "right_spread": 20, "bend": 30.0, "right_out": 155, "left_out": 35, "left_elbow": 40},
    {"left_hip": 78, "left_knee": 85, **_both(out=80), "pitch": -4.0},
    {
        "left_raise": 85,
        "left_elbow": 5,
        "twist": -35.0,
        "pitch": 22.0,
        "left_hip": 30,
        "left_knee": 35,
        "right_hip": -12,
    },
)


def _mirror(pose: Pose) -> Pose:
    """The same pose with left and right exchanged."""
    swap = {"left": "right", "right": "left"}
    out: Pose = {}
    for name, angle in pose.items():
        side, _, joint = name.partition("_")
        out[f"{swap[side]}_{joint}" if joint else name] = (
            -angle if name in ("bend", "twist", "look") else angle
        )
    return out


def _depth(u: float) -> float:
    return float(NEAR * (FAR / NEAR) ** u)


@dataclass
class _Score:
    """The key poses of one clip: a growing list of (frame, all channels), later interpolated and smoothed."""

    rng: np.random.Generator
    aspect: float
    pose: Pose
    frame: float = 0.0
    keys: list[tuple[float, Pose]] = field(default_factory=list)

    def key(self, duration: float, changes: Pose) -> None:
        """After ``duration`` frames, reach the current pose with ``changes``."""
        self.frame += duration
        self.pose = self.pose | changes
        self.keys.append((self.frame, self.pose))

    def random_pose(self, library: tuple[Pose, ...]) -> Pose:
        """A pose from the library, mirrored or not, and slightly changed at random."""
        chosen = library[int(self.rng.integers(len(library)))]
        if self.rng.random() < 0.5:
            chosen = _mirror(chosen)
        pose = {name: angle + self.rng.normal() * 4 for name, angle in (STANDING | chosen).items()}
        return pose | {"look": pose["look"] + self.rng.uniform(-35, 35)}

    def facing(self, heading: float) -> float:
        """``heading`` plus whole turns, chosen so that the turn from the current heading is the short one."""
        now = self.pose["heading"]
        return now + (heading - now + 180) % 360 - 180

    def pace(self, pose: Pose) -> float:
        """Number of frames that a change to ``pose`` takes; the largest angle decides."""
        return 12 + max(abs(angle - self.pose[name]) for name, angle in pose.items()) / 3.4

    def walk(self, s: float, u: float, arms: Pose) -> None:
        """Turn towards the place (s, u) while changing to the pose ``arms``, and walk there."""
        z0, z1 = _depth(self.pose["u"]), _depth(u)
        half = self.aspect / 2 / FOCAL
        dx, dz = half * (s * z1 - self.pose["s"] * z0), z1 - z0
        # The difference of frames depends on the speed in the picture, not on the floor: use picture heights.
        shift = np.hypot((s - self.pose["s"]) * self.aspect / 2, 0.9 * np.log(z1 / z0))
        way = self.facing(float(np.degrees(np.arctan2(dx, -dz))))
        turn = self.pace(arms | {"heading": way})
        duration = max(110 * float(shift), 1.8 * turn)
        part = 0.6 * turn / duration
        start = {name: self.pose[name] for name in ("s", "u")}
        mid = {"s": start["s"] + part * (s - start["s"]), "u": start["u"] + part * (u - start["u"])}
        self.key(turn, mid | {"heading": way} | arms)
        self.key(duration - turn, {"s": s, "u": u})

    def turn(self, heading: float) -> None:
        """Turn on the spot with a new arm pose."""
        pose = {"heading": self.facing(heading)} | self.random_pose(ARM_POSES)
        self.key(self.pace(pose), pose)

    def act(self) -> None:
        """Take a whole-body pose."""
        pose = self.random_pose(BODY_POSES if self.rng.random() < 0.7 else ARM_POSES)
        self.key(self.pace(pose), pose)


def perform(rng: np.random.Generator, frames: int, aspect: float) -> dict[str, Array]:
    """A clip's random motion as a posed skeleton: ``skeleton``'s points, each ``[frames, 3]``.

    The person begins near the middle, facing the camera. In clips of 300 frames or more, the person leaves
    the picture once. The tempo is evened out: slow parts are sped up and fast ones slowed down, so that
    successive frames always differ by about the same amount and nothing jumps.
    """
    points = skeleton(_compose(rng, frames, aspect), aspect)
    names = [
        f"{side}_{joint}" for side in SIDES for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "toes")
    ]
    joints = np.stack([points[name] for name in ("head", "pelvis", *names)], axis=1)
    places, scale = project(joints, 1.0, aspect)  # in picture heights
    outside = np.abs(places[:, :, 0] - aspect / 2) > aspect / 2 + 0.05
    steps = np.diff(places, axis=0)
    # A moving edge adds to two frames' mean squared difference in proportion to its length divided by the
    # area.
    squares = ((steps**2).sum(-1) * scale[1:] * ~outside[1:]).mean(1) * 2 / aspect
    effort = np.sqrt(np.convolve(squares, _hann(15), mode="same")) + IDLE
    passed = np.concatenate([[0.0], np.cumsum(effort)])
    story = np.interp(np.arange(frames) * TEMPO, passed, np.arange(len(passed)))
    low = np.minimum(story.astype(np.int64), len(passed) - 2)
    share = (story - low)[:, None]
    return {name: point[low] * (1 - share) + point[low + 1] * share for name, point in points.items()}


def _compose(rng: np.random.Generator, frames: int, aspect: float) -> dict[str, Array]:
    """Random motion for more than ``frames`` frames: a smooth curve for every channel."""
    length = 3 * frames + 60
    score = _Score(
        rng,
        aspect,
        {"s": rng.uniform(-0.25, 0.25), "u": rng.uniform(0.05, 0.3), "heading": rng.uniform(-25, 25)},
    )
    score.key(0, score.random_pose(ARM_POSES))
    exit_at = rng.uniform(0.15, 0.4) * frames if frames >= 300 else np.inf
    while score.frame < length + 30:
        if score.frame > exit_at:
            side, exit_at = float(rng.choice([-1.0, 1.0])), np.inf
            score.walk((1 + 0.76 / aspect) * side, rng.uniform(0, 0.1), STANDING)
            score.walk(rng.uniform(-0.3, 0.3), rng.uniform(0, 0.4), STANDING)
            score.turn(rng.uniform(-40, 40))
        elif (kind := rng.random()) < 0.4:
            # To the other side, without stopping behind the pillar.
            s = rng.uniform(-0.7, -0.1) if score.pose["s"] > -0.1 else rng.uniform(0.1, 0.45)
            score.walk(s, rng.uniform(0, 1) ** 2, score.random_pose(ARM_POSES))
            if rng.random() < 0.7:
                score.turn(rng.uniform(-60, 60))
        elif kind < 0.55:
            score.turn(rng.uniform(-180, 180))
        else:
            score.act()
    return _smooth(score.keys, length)


def _hann(window: int) -> Array:
    """Weights ``[window]`` of a Hann window, summing to 1."""
    kernel: Array = np.hanning(window + 2)[1:-1]
    kernel /= kernel.sum()
    return kernel


def _smooth(keys: list[tuple[float, Pose]], frames: int, window: int = 27) -> dict[str, Array]:
    """Interpolate key poses linearly, then smooth them with a Hann window of ``window`` frames."""
    times = np.array([frame for frame, _ in keys])
    grid = np.arange(frames + window - 1) - window // 2
    curves = {}
    for name in CHANNELS:
        line = np.interp(grid, times, [pose[name] for _, pose in keys])
        curves[name] = np.convolve(line, _hann(window), mode="valid")
    return curves


def _rotate(i: int, j: int, degrees: Array) -> Array:
    """Rotations ``[T, 3, 3]`` of axis i towards axis j. A body's axes are 0 left, 1 up, 2 forward."""
    a = np.radians(degrees)
    R = np.zeros((len(a), 3, 3))
    R[:, (0, 1, 2), (0, 1, 2)] = 1.0
    R[:, i, i] = R[:, j, j] = np.cos(a)
    R[:, j, i] = np.sin(a)
    R[:, i, j] = -np.sin(a)
    return R


def _gait(m: dict[str, Array], x: Array, z: Array) -> dict[str, Array]:
    """Add the swing of legs and arms for the distance walked."""
    speed = np.hypot(np.gradient(x), np.gradient(z))
    phase = np.cumsum(speed) / STEP * np.pi
    swing = 27 * np.tanh(speed / 0.012)
    out = dict(m)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        wave, lift = sign * np.sin(phase), 0.5 + 0.5 * sign * np.cos(phase)
        out[f"{side}_hip"] = m[f"{side}_hip"] + swing * wave
        out[f"{side}_knee"] = m[f"{side}_knee"] + swing * (1.3 * lift * lift + 0.1)
        out[f"{side}_raise"] = m[f"{side}_raise"] - 0.8 * swing * wave * np.clip(
            1 - m[f"{side}_out"] / 90, 0, 1
        )
    return out


def skeleton(motion: dict[str, Array], aspect: float) -> dict[str, Array]:
    """Pose the body.

    Args:
        motion: curves ``[T]`` from ``_compose``.
        aspect: the picture's width over its height.

    Returns:
        Points in the room ``[T, 3]`` by name, and the unit vectors ``head_forward`` and ``chest_forward``.
    """
    z = NEAR * (FAR / NEAR) ** motion["u"]
    x = motion["s"] * z * aspect / 2 / FOCAL
    m = _gait(motion, x, z)
    T = len(z)

    def at(base: Array, axes: Array, left: float, up: float, forward: float) -> Array:
        point: Array = base + axes @ np.array([left, up, forward])
        return point

    pelvis = np.zeros((T, 3))
    hips = _rotate(2, 0, 0.3 * m["twist"])
    spine = _rotate(1, 0, m["bend"]) @ _rotate(1, 2, m["pitch"]) @ _rotate(2, 0, m["twist"])
    neck = at(pelvis, spine, 0, 0.5, 0)
    head_turn = spine @ _rotate(1, 2, -0.5 * m["pitch"]) @ _rotate(2, 0, m["look"]) @ _rotate(1, 2, m["nod"])
    head = at(at(neck, spine, 0, 0.07, 0), head_turn, 0, 0.13, 0.02)
    p = {
        "pelvis": pelvis,
        "belly": at(pelvis, spine, 0, 0.16, 0.02),
        "chest": at(pelvis, spine, 0, 0.34, 0.03),
        "collar": at(neck, spine, 0, -0.02, 0.09),
        "breast": at(pelvis, spine, 0, 0.22, 0.14),
        "neck": neck,
        "head": head,
        "nose": at(head, head_turn, 0, -0.01, 0.115),
        "chin": at(head, head_turn, 0, -0.075, 0.06),
        "brow": at(head, head_turn, 0, -0.005, 0.05),
        "bun": at(head, head_turn, 0, 0.06, -0.1),
    }
    for side, sign in (("left", 1.0), ("right", -1.0)):
        p |= _limbs(m, side, sign, p, spine, hips, head_turn)
    return _stand(p, m["heading"], x, z) | {
        "head_forward": _heading(m["heading"], head_turn[:, :, 2]),
        "chest_forward": _heading(m["heading"], spine[:, :, 2]),
    }


def _limbs(
    m: dict[str, Array],
    side: str,
    sign: float,
    p: dict[str, Array],
    spine: Array,
    hips: Array,
    head_turn: Array,
) -> dict[str, Array]:
    """Arm, leg, eye and ear of one side (``sign`` 1 left, -1 right), in the body's axes."""

    def at(base: Array, axes: Array, left: float, up: float, forward: float) -> Array:
        point: Array = base + axes @ np.array([sign * left, up, forward])
        return point

    shoulder = at(p["neck"], spine, 0.185, -0.05, 0)
    arm = spine @ _rotate(1, 2, -m[f"{side}_raise"]) @ _rotate(1, 0, -sign * m[f"{side}_out"])
    arm = arm @ _rotate(2, 0, -sign * m[f"{side}_roll"])
    elbow = at(shoulder, arm, 0, -0.29, 0)
    fore = arm @ _rotate(1, 2, -m[f"{side}_elbow"])
    hip = at(p["pelvis"], hips, 0.1, -0.02, 0)
    leg = hips @ _rotate(1, 2, -m[f"{side}_hip"]) @ _rotate(1, 0, -sign * m[f"{side}_spread"])
    knee = at(hip, leg, 0, -0.43, 0)
    shin = leg @ _rotate(1, 2, m[f"{side}_knee"])
    ankle = at(knee, shin, 0, -0.42, 0)
    toes = shin[:, :, 2] * np.array([1.0, 0.45, 1.0])
    toes /= np.sqrt((toes**2).sum(1, keepdims=True))
    points = {
        "shoulder": shoulder,
        "elbow": elbow,
        "wrist": at(elbow, fore, 0, -0.26, 0),
        "hand": at(elbow, fore, 0, -0.36, 0),
        "waist": at(p["pelvis"], spine, 0.09, 0.05, 0),
        "hip": hip,
        "knee": knee,
        "ankle": ankle,
        "heel": ankle - 0.03 * toes - np.array([0, 0.045, 0]),
        "toes": ankle + 0.15 * toes - np.array([0, 0.05, 0]),
        "eye": at(p["head"], head_turn, 0.042, 0.02, 0.1),
        "ear": at(p["head"], head_turn, 0.105, 0.0, 0.0),
    }
    return {f"{side}_{name}": point for name, point in points.items()}


def _heading(heading: Array, v: Array) -> Array:
    """Vectors ``[T, 3]`` along a body's axes (left, up, forward) as vectors along the room's axes."""
    a = np.radians(heading)
    x = np.cos(a) * v[:, 0] + np.sin(a) * v[:, 2]
    z = np.sin(a) * v[:, 0] - np.cos(a) * v[:, 2]
    return np.stack([x, v[:, 1], z], axis=1)


def _stand(p: dict[str, Array], heading: Array, x: Array, z: Array) -> dict[str, Array]:
    """Put the lower foot on the floor, and the feet, more than the hips, over the point (x, z)."""
    left, right = p["left_ankle"], p["right_ankle"]
    # A soft minimum, so that the weight shifts from foot to foot without a jolt.
    k = 0.03
    low = -k * np.logaddexp(-left[:, 1] / k, -right[:, 1] / k) + k * np.log(2.0)
    middle = 0.35 * (left + right)
    shift = np.stack([-middle[:, 0], 0.095 - low, -middle[:, 2]], axis=1)
    ground = np.stack([x, np.zeros_like(x), z], axis=1)
    return {name: ground + _heading(heading, point + shift) for name, point in p.items()}
