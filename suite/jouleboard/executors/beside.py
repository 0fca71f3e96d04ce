"""Whether families may run beside each other on one machine: only where none is in another one's energy figures.

Example::

    why_not(profile_of_one_gpu, devices=4, at_once=2)     None
    why_not(profile_of_a_processor, devices=1, at_once=2) "energy is measured at boundary `package`, which all processes share"
"""

from __future__ import annotations

from collections.abc import Sequence

from jouleboard.declared import Hardware

SHARED = {
    "package": "energy is measured at boundary `package`: the counter holds the joules of everything on the processor",
    "soc": "energy is measured at boundary `soc`: the sensor holds the joules of everything on the chip",
    "wall": "energy is measured at the wall: the meter holds the joules of the whole machine",
    "cpu": "energy is estimated from CPU time: families beside each other slow each other down",
    "gpu+cpu": "energy is measured at boundary `gpu+cpu`: the processor's counter holds the joules of all families",
}


def why_not(profile: Hardware, *, devices: int, at_once: int) -> str | None:
    """Say why so many families may not run at the same time on one machine; None where they may.

    Args:
        profile: what energy is measured on.
        devices: how many devices of the profile's kind this process may use.
        at_once: families at the same time.
    """
    if at_once <= 1:
        return None
    reason = shared(profile)
    if reason is not None:
        return reason
    wanted = at_once * profile.count
    if devices < wanted:
        return f"{at_once} families at once need {wanted} devices of profile {profile.id}, {devices} may be used here"
    return None


def shared(profile: Hardware) -> str | None:
    """Say what two families on one machine would share in their figures; None where each has its own device."""
    if profile.method in {"simulated", "model"}:
        return ("the simulated device computes on the processor, which all processes share" if profile.method == "simulated"
                else SHARED["cpu"])
    return SHARED.get(profile.boundary)


def deal(visible: Sequence[str], *, count: int, at_once: int) -> list[str]:
    """Deal devices out to families that run at the same time.

    Args:
        visible: the devices that may be used, as `CUDA_VISIBLE_DEVICES` names them.
        count: devices of one family.
        at_once: families at the same time.

    Returns:
        `CUDA_VISIBLE_DEVICES` of each.
    """
    return [",".join(visible[place * count:(place + 1) * count]) for place in range(at_once)]
