"""Policies: which strategy settles which conflict, in Python or in a file.

conditions  what a rule may ask, ready-made
model       Policy and PolicyBuilder; what is checked when one is built
manager     PolicyManager: retries, time-outs, fallbacks, escalation
file        policies in TOML
"""

from nova.conflict.policy import conditions
from nova.conflict.policy.conditions import NO_FACTS, Condition, Facts
from nova.conflict.policy.file import policy_from_toml
from nova.conflict.policy.manager import PolicyManager, PolicyStrategy, Timer
from nova.conflict.policy.model import (
    AutoLimit,
    Choice,
    Escalation,
    Policy,
    PolicyBuilder,
    PolicyError,
    Retry,
    Rule,
)

__all__ = [
    "NO_FACTS",
    "AutoLimit",
    "Choice",
    "Condition",
    "Escalation",
    "Facts",
    "Policy",
    "PolicyBuilder",
    "PolicyError",
    "PolicyManager",
    "PolicyStrategy",
    "Retry",
    "Rule",
    "Timer",
    "conditions",
    "policy_from_toml",
]
