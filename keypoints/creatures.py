"""MuJoCo's models of animals and people: what is filmed of each, and which points are the truth.

The models are dm_control's: the rodent of Merel et al., "Deep neuroethology of a virtual rodent"
(ICLR 2020), the humanoid of the CMU motion capture data base, and the fruit fly of Vaxenburg et
al., "Whole-body simulation of realistic fruit fly locomotion" (2024). They need the extra `sim`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Creature:
    """A model, how it is filmed and what is known of it.

    Attributes:
        walker: makes dm_control's walker, named "walker".
        kind: of MuJoCo's objects whose places are the joints, "site" or "body".
        joints: name of each joint -> name of that object.
        bones: pairs of names to draw.
        millimetres: in one unit of the model.
        radius: of the ring of cameras, model units.
        height: of the ring's centre above the floor, model units.
        reach: largest distance of the root from the z axis, in x and in y, model units.
        liveliness: amplitude of a hinge, as a share of half its range.
        at_springs: whether hinges rest where their springs do, else at the model's zero.
    """

    walker: Callable[[], Any]
    kind: str
    joints: dict[str, str]
    bones: tuple[tuple[str, str], ...]
    millimetres: float
    radius: float
    height: float
    reach: float
    liveliness: float
    at_springs: bool = False


_SIDES = (("left", "L"), ("right", "R"))


def _rat() -> Any:
    from dm_control.locomotion.walkers import rodent

    return rodent.Rat(name="walker")


_PAW = ("shoulder", "elbow", "wrist", "finger", "palm", "hip", "knee", "ankle", "toe", "sole")
RODENT = Creature(
    _rat,
    "site",
    {"head": "head"}
    | {f"{part} {side}": f"{part}_{letter}" for side, letter in _SIDES for part in _PAW},
    tuple(
        (f"{a} {side}", f"{b} {side}")
        for side, _ in _SIDES
        for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("wrist", "finger"),
                     ("palm", "wrist"), ("hip", "knee"), ("knee", "ankle"), ("ankle", "toe"),
                     ("sole", "ankle"), ("shoulder", "hip"))
    )
    + (("head", "shoulder left"), ("head", "shoulder right"), ("hip left", "hip right")),
    millimetres=1000.0, radius=0.75, height=0.06, reach=0.12, liveliness=0.45,
)  # fmt: skip


def _humanoid() -> Any:
    from dm_control.locomotion.walkers import cmu_humanoid

    return cmu_humanoid.CMUHumanoidPositionControlledV2020(name="walker")


# CMU's names of the bodies; a body's place is the joint to its parent, so "femur" is the hip
_LIMBS = {
    "hip": "femur", "knee": "tibia", "ankle": "foot", "toes": "toes", "shoulder": "humerus",
    "elbow": "radius", "wrist": "wrist", "fingers": "fingers",
}  # fmt: skip
HUMANOID = Creature(
    _humanoid,
    "body",
    {"pelvis": "root", "spine": "upperback", "chest": "thorax", "neck": "lowerneck",
     "head": "head"}
    | {f"{part} {side}": side[0] + body for side, _ in _SIDES for part, body in _LIMBS.items()},
    tuple(
        (f"{a} {side}", f"{b} {side}")
        for side, _ in _SIDES
        for a, b in (("hip", "knee"), ("knee", "ankle"), ("ankle", "toes"), ("shoulder", "elbow"),
                     ("elbow", "wrist"), ("wrist", "fingers"))
    )
    + tuple((a, f"{b} {side}") for side, _ in _SIDES for a, b in (("pelvis", "hip"),
                                                                  ("neck", "shoulder")))
    + (("pelvis", "spine"), ("spine", "chest"), ("chest", "neck"), ("neck", "head")),
    millimetres=1000.0, radius=4.2, height=0.95, reach=0.5, liveliness=0.25,
)  # fmt: skip


def _fruit_fly() -> Any:
    from dm_control.locomotion.walkers import fruitfly_v2

    return fruitfly_v2.FruitFly(name="walker")


_LEG = ("coxa", "femur", "tibia", "tarsus", "claw")
FLY = Creature(
    _fruit_fly,
    "body",
    {"thorax": "thorax", "head": "head", "abdomen": "abdomen", "abdomen tip": "abdomen_7"}
    | {f"{part} T{leg} {side}": f"{part}_T{leg}_{side}"
       for leg in (1, 2, 3) for side, _ in _SIDES for part in _LEG},
    tuple(
        (f"{a} T{leg} {side}", f"{b} T{leg} {side}")
        for leg in (1, 2, 3) for side, _ in _SIDES for a, b in zip(_LEG, _LEG[1:], strict=False)
    )
    + tuple(("thorax", f"coxa T{leg} {side}") for leg in (1, 2, 3) for side, _ in _SIDES)
    + (("thorax", "head"), ("thorax", "abdomen"), ("abdomen", "abdomen tip")),
    millimetres=10.0, radius=0.85, height=0.09, reach=0.06, liveliness=0.3, at_springs=True,
)  # fmt: skip

CREATURES = {"rodent": RODENT, "humanoid": HUMANOID, "fly": FLY}
