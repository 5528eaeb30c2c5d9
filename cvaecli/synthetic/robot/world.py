"""A table with objects that an arm pushes: the motion of many trajectories at once.

Lengths are in table widths and times in frames. The table is the square [0, 1]^2, with x to the right, y
towards the viewer and z up. Axes: N trajectories, T frames, K objects.

Deterministic and random parts:

- The arm follows the actions exactly: position[t + 1] = position[t] + action[t, :3].
- **Unless it strays** (`simulate`'s ``stray``): then actions and positions say where it was sent, and the
  gripper has a random error in x and y, which changes over time, from the first frame on.
- Objects are pushed, push each other, slide with Coulomb friction and stop. All of this is deterministic.
- **Except once per contact**: when the gripper begins to touch an object, the object slips. It gets a
sideways
  speed of ``SLIP`` and a turning speed of ``TWIST``, each times a normal random number. Together with start
  and actions, these numbers and the arm's error determine everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SLIP = 0.045
"""Standard deviation of the sideways speed at a first touch, in table widths per frame."""
TWIST = 0.35
"""Standard deviation of the turning speed at a first touch, in radians per frame."""

MEMORY = 0.7
"""Share of a straying arm's error that is left in the next frame."""

OBJECTS = 4
SUBSTEPS = 6
LOW = 0.1
"""Below this height the gripper touches objects."""
PARTED = 0.03
"""A contact ends when gripper and object are farther apart than this."""
FRICTION = 0.016
"""Loss of speed of a sliding object per frame."""
SPIN_FRICTION = 0.1
EDGE = 0.08
"""The smallest distance of the gripper from the table's edge."""
HIGH = 0.3


@dataclass
class World:
    """N trajectories of T frames.

    Attributes:
        actions: ``[N, T, 4]``: dx, dy, dz to the next frame, and the closure of the gripper in that frame,
            from 0 (open) to 1.
        positions: ``[N, T, 3]``: x, y, z of the place where the gripper is sent.
        grips: ``[N, T]``: closure of the gripper, from 0 (open) to 1.
        places: ``[N, T, K, 2]``: the objects' centres.
        turns: ``[N, T, K]``: the objects' angles in radians.
        radii: ``[N, K]``: the objects' radii; 0 if there is no such object.
        kinds: ``[N, K]``: whole numbers that choose shape, texture and colour.
        slips: ``[N, T, K]``: whether the object slipped just before the frame.
        strays: ``[N, T, 3]``: offset of the gripper from the place where it is sent.
    """

    actions: Array
    positions: Array
    grips: Array
    places: Array
    turns: Array
    radii: Array
    kinds: npt.NDArray[np.int64]
    slips: Mask
    strays: Array

    @property
    def hands(self) -> Array:
        """The true places of the gripper, ``[N, T, 3]``."""
        return self.positions + self.strays


def simulate(seeds: list[list[int]], frames: int, noise: float, variant: int, stray: float = 0.0) -> World:
    """Simulate one trajectory per seed.

    Args:
        seeds: seeds of the starts and actions; each is a list of whole numbers.
        frames: T.
        noise: factor on ``SLIP`` and ``TWIST``. With noise 0 and stray 0, start and actions determine all.
        variant: another number gives different slips and errors of the arm for the same starts and actions.
        stray: standard deviation of the arm's error in x and in y, in table widths.
    """
    starts = [_start(np.random.default_rng(seed), frames) for seed in seeds]
    path, places, turns, radii, kinds = (np.stack(part) for part in zip(*starts, strict=True))
    world = World(
        path[:, 1:],
        np.cumsum(path[:, :-1, :3], axis=1),
        path[:, :-1, 3],
        np.repeat(places[:, None], frames, 1),
        np.repeat(turns[:, None], frames, 1),
        radii,
        kinds,
        np.zeros((*turns.shape[:1], frames, OBJECTS), bool),
        stray * np.stack([_errors(np.random.default_rng([*seed, 2, variant]), frames) for seed in seeds]),
    )
    draws = [np.random.default_rng([*seed, 1, variant]).normal(size=(frames, OBJECTS, 2)) for seed in seeds]
    _push(world, noise * np.stack(draws))
    return world


# -- starts and actions --------------------------------------------------------------------------------


def _start(rng: np.random.Generator, frames: int) -> tuple[Array, Array, Array, Array, npt.NDArray[np.int64]]:
    """The path (see `_act`), and the objects' places, turns, radii and kinds."""
    count = int(rng.integers(2, OBJECTS + 1))
    radii = np.where(np.arange(OBJECTS) < count, rng.uniform(0.065, 0.095, OBJECTS), 0)
    places = np.full((OBJECTS, 2), 9.0)
    for i in range(count):
        for _ in range(200):
            places[i] = rng.uniform(0.2, 0.8, 2)
            apart = np.linalg.norm(places[:i] - places[i], axis=1) - radii[:i] - radii[i]
            if (apart > 0.04).all():
                break
    turns = rng.uniform(-np.pi, np.pi, OBJECTS)
    kinds = rng.permutation(1000)[:OBJECTS]
    return _act(rng, frames, places[:count]), places, turns, radii, kinds


def _act(rng: np.random.Generator, frames: int, places: Array) -> Array:
    """A path ``[T + 1, 4]`` that pushes the objects: approach one near the table, push it, lift, go to the
    next.

    Row 0 is the first position and gripper, row t the step to position t and the gripper there. The path
    depends only on the objects' first places, so that later random events do not change it.
    """
    order = rng.permutation(len(places))
    angle = rng.uniform(-np.pi, np.pi)
    away = places[order[0]] + rng.uniform(0.2, 0.3) * np.array([np.cos(angle), np.sin(angle)])
    at = np.array([*np.clip(away, EDGE, 1 - EDGE), rng.uniform(0.02, 0.16)])
    at = at.astype(np.float32).astype(np.float64)
    speed = rng.uniform(0.045, 0.075)
    grip = rng.uniform(0, 1)
    goals: list[Array] = []
    for i in order:
        through = places[i] - (away if not goals else goals[-1][:2])
        through /= max(1e-6, float(np.linalg.norm(through)))
        beyond = places[i] + 0.2 * through
        goals += [np.array([*beyond, 0.03]), np.array([*beyond, 0.24])]
    rows = [np.array([*at, grip])]
    velocity = np.zeros(3)
    wish = rng.uniform(0, 1)
    for _ in range(frames):
        while len(goals) > 1 and np.linalg.norm(goals[0] - at) < speed:
            goals.pop(0)
            wish = rng.uniform(0, 1)
        step = goals[0] - at
        step *= min(1.0, speed / max(1e-6, float(np.linalg.norm(step[:2])), abs(step[2]) * 0.8))
        velocity = 0.45 * velocity + 0.55 * step + rng.normal(0, [0.006, 0.006, 0.008])
        low, high = np.array([EDGE, EDGE, 0.02]), np.array([1 - EDGE, 1 - EDGE, HIGH])
        # Rounded like the stored numbers, so that the files describe the arm's motion exactly.
        new = np.clip(at + velocity, low, high)
        move = (new - at).astype(np.float32).astype(np.float64)
        velocity, at = move, at + move
        grip += float(np.clip(wish - grip, -0.25, 0.25))
        rows.append(np.array([*move, grip]))
    return np.stack(rows)


def _errors(rng: np.random.Generator, frames: int) -> Array:
    """A straying arm's error ``[T, 3]`` in standard deviations. ``MEMORY`` of it is left in the next frame.

    There is no error in height, so that the arm does not touch objects that it should pass over.
    """
    shocks = rng.normal(size=(frames, 3)) * [1, 1, 0]
    errors = shocks.copy()
    for t in range(1, frames):
        errors[t] = MEMORY * errors[t - 1] + np.sqrt(1 - MEMORY**2) * shocks[t]
    return errors


# -- pushing -------------------------------------------------------------------------------------------


def reach(grip: Array) -> Array:
    """Radius of the gripper. Open fingers are wider."""
    return 0.045 + 0.02 * (1 - grip)


def _push(world: World, chance: Array) -> None:
    """Moves the objects of ``world``, in place.

    ``chance`` ``[N, T, K, 2]``: the sideways and the turning slip at each frame, in standard deviations.
    """
    places, turns = world.places[:, 0].copy(), world.turns[:, 0].copy()
    speed, spin = np.zeros_like(places), np.zeros_like(turns)
    touched = np.zeros(turns.shape, bool)
    there = world.radii > 0
    for t in range(world.places.shape[1] - 1):
        move = (world.actions[:, t, :3] + world.strays[:, t + 1] - world.strays[:, t])[:, None]
        for substep in range(SUBSTEPS):
            hand = world.hands[:, t, None] + move * (substep + 1) / SUBSTEPS
            normal, distance = _between(hand[..., :2], places)
            gap = distance - world.radii - reach(world.actions[:, t, 3])[:, None]
            touch = there & (hand[..., 2] < LOW) & (gap < 0)
            new_contact = touch & ~touched
            touched = touch | (touched & (gap < PARTED) & (hand[..., 2] < LOW))
            side = np.stack([-normal[..., 1], normal[..., 0]], axis=-1)
            _strike(places, speed, spin, touch, normal, side, gap, move[..., :2])
            slip = np.where(new_contact[..., None], chance[:, t], 0)
            speed += SLIP * slip[..., :1] * side
            spin += TWIST * slip[..., 1]
            world.slips[:, t + 1] |= new_contact
            _collide(places, speed, world.radii)
            places += speed / SUBSTEPS
            turns += spin / SUBSTEPS
            _slow(speed, spin)
            _stay(places, speed, world.radii)
        world.places[:, t + 1], world.turns[:, t + 1] = places, turns


def _between(start: Array, end: Array) -> tuple[Array, Array]:
    """Unit vectors ``[..., 2]`` and distances ``[...]`` from ``start`` to ``end``."""
    way = end - start
    distance = np.linalg.norm(way, axis=-1)
    return way / np.maximum(distance, 1e-6)[..., None], distance


def _strike(
    places: Array, speed: Array, spin: Array, touch: Mask, normal: Array, side: Array, gap: Array, move: Array
) -> None:
    """The gripper pushes the objects that it touches: no overlap, no approach, and some sideways drag."""
    places += np.where(touch, -gap, 0)[..., None] * normal
    approach = ((move - speed) * normal).sum(-1)
    speed += np.where(touch, np.maximum(approach, 0), 0)[..., None] * normal
    drag = np.where(touch, ((move - speed) * side).sum(-1), 0)
    speed += 0.15 * drag[..., None] * side
    spin -= 1.2 * drag


def _collide(places: Array, speed: Array, radii: Array) -> None:
    """Objects push each other apart. All have the same mass and none bounces."""
    for i in range(OBJECTS):
        for j in range(i):
            normal, distance = _between(places[:, j], places[:, i])
            overlap = np.where((radii[:, i] > 0) & (radii[:, j] > 0), radii[:, i] + radii[:, j] - distance, 0)
            hit = (overlap > 0)[:, None]
            part = np.maximum(overlap, 0)[:, None] / 2 * normal
            places[:, i] += part
            places[:, j] -= part
            closing = np.minimum(((speed[:, i] - speed[:, j]) * normal).sum(-1), 0)[:, None] / 2 * normal
            speed[:, i] -= np.where(hit, closing, 0)
            speed[:, j] += np.where(hit, closing, 0)


def _slow(speed: Array, spin: Array) -> None:
    norm = np.linalg.norm(speed, axis=-1, keepdims=True)
    speed *= np.maximum(1 - FRICTION / SUBSTEPS / np.maximum(norm, 1e-9), 0)
    spin *= np.maximum(1 - SPIN_FRICTION / SUBSTEPS / np.maximum(np.abs(spin), 1e-9), 0)


def _stay(places: Array, speed: Array, radii: Array) -> None:
    """The rails around the table stop the objects."""
    margin = np.where(radii > 0, radii + 0.05, -99)[..., None]
    out = (places < margin) | (places > 1 - margin)
    np.clip(places, margin, 1 - margin, out=places)
    speed[out] = 0
