"""Strategies: what becomes of the versions of a conflict.

A strategy is a pure function of the conflict and its context. The same versions in any order give identical bytes, so
replicas settle a conflict alike without talking to each other; the exceptions are the two that ask somebody. Nothing is
lost in silence: whatever a resolution does not hold is in `discarded`, with the reason.

That the versions of a conflict are concurrent is the word of whoever made it (`ConflictDetector`, or a store with
dotted rows); `detect.prune` drops superseded ones from a list of versions that nobody vouches for.

base       the seam: Strategy, Resolution, ResolveContext, names
basic      lww, multi_value
semantic   semantic; max, min, union, sum
transform  operational_transform
choices    highest_priority, automatic_rollback
manual     manual, and the queue of what waits
vote       consensus_vote, and how votes are counted
"""

from nova.conflict.detect import newest
from nova.conflict.strategies.base import (
    ENTRY_POINTS,
    NO_CONTEXT,
    STRATEGIES,
    Action,
    Discarded,
    Resolution,
    ResolveContext,
    Rule,
    Settled,
    Strategy,
    UndecidedError,
    clock_of,
    known_strategies,
    last_writer,
    register_strategy,
    strategy,
    strategy_named,
)
from nova.conflict.strategies.basic import LastWriteWins, MultiValue
from nova.conflict.strategies.choices import AutomaticRollback, HighestPriority
from nova.conflict.strategies.manual import Case, Decision, Escalation, ManualIntervention, ManualQueue
from nova.conflict.strategies.semantic import (
    SCHEMAS,
    Declared,
    Schema,
    SemanticMerge,
    by_default,
    maximum,
    register_schema,
)
from nova.conflict.strategies.transform import OperationalTransform
from nova.conflict.strategies.vote import Asker, Ballot, Candidate, Cast, ConsensusVote, Question, Tally
from nova.conflict.words import show

__all__ = [
    "ENTRY_POINTS",
    "NO_CONTEXT",
    "SCHEMAS",
    "STRATEGIES",
    "Action",
    "Asker",
    "AutomaticRollback",
    "Ballot",
    "Candidate",
    "Case",
    "Cast",
    "ConsensusVote",
    "Decision",
    "Declared",
    "Discarded",
    "Escalation",
    "HighestPriority",
    "LastWriteWins",
    "ManualIntervention",
    "ManualQueue",
    "MultiValue",
    "OperationalTransform",
    "Question",
    "Resolution",
    "ResolveContext",
    "Rule",
    "Schema",
    "SemanticMerge",
    "Settled",
    "Strategy",
    "Tally",
    "UndecidedError",
    "by_default",
    "clock_of",
    "known_strategies",
    "last_writer",
    "maximum",
    "newest",
    "register_schema",
    "register_strategy",
    "show",
    "strategy",
    "strategy_named",
]
