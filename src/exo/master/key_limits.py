"""State x limits of a key -> why it cannot have them, or None. Pure."""

from exo.shared.refusals import clean_text, refusal
from exo.shared.types.access import KeyLimits, Scope
from exo.shared.types.commands import Refusal
from exo.shared.types.state import State

REQUESTS_MAX = 1_000_000
TOKENS_MAX = 1_000_000_000_000
DEVICES_MAX = 256


def limits_refusal(state: State, scopes: tuple[Scope, ...], limits: KeyLimits) -> Refusal | None:
    """Say why a key with these scopes cannot have these limits."""
    if limits != KeyLimits() and "admin" in scopes:
        return refusal(
            422,
            "limits_on_admin",
            "a key with the scope admin can make others without limits, so that its own would hold nothing back; "
            "leave out the scope admin, or the limits",
        )
    quotas = (
        ("requests a minute", limits.requests_per_minute, REQUESTS_MAX),
        ("tokens a day", limits.tokens_per_day, TOKENS_MAX),
    )
    for name, number, highest in quotas:
        if number is not None and not 1 <= number <= highest:
            return refusal(
                422,
                "quota_out_of_range",
                f"a key may have 1 to {highest} {name}, not {number}; ask for others, or leave it out",
            )
    if len(limits.device_ids) > DEVICES_MAX:
        return refusal(
            422,
            "too_many_devices",
            f"a key names up to {DEVICES_MAX} devices, not {len(limits.device_ids)}; name fewer",
        )
    known = {device.device_id for node in state.nodes.values() for device in node.identity.devices}
    for device_id in limits.device_ids:
        if device_id not in known:
            text = clean_text(device_id)
            return refusal(
                422,
                "device_not_found",
                f"there is no device {text!r}; `exo status` lists those there are",
                near_matches=[one for one in sorted(known) if one.startswith(text.partition("/")[0])][:3],
            )
    return None
