"""What can go wrong in agreement, and what the caller should do about it. Storage errors pass through unchanged."""


class ConsensusError(Exception):
    """Root of this package's errors. `code` is stable; the message says what to do."""

    code = "consensus"


class UpgradeRequired(ConsensusError):
    """The log holds a command that this version of the software cannot apply. To pass it over would be to diverge."""

    code = "upgrade_required"

    def __init__(self, version: int, known: int) -> None:
        super().__init__(
            f"the mesh uses commands of version {version}, and this software knows up to {known}: upgrade this node; "
            "it has lost nothing and goes on where it stopped"
        )
        self.version = version
        self.known = known


class ApplyFailed(ConsensusError):
    """The state machine raised at a command. It is total, so the tables are damaged, or it is a bug."""

    code = "apply_failed"

    def __init__(self, index: int, error: Exception) -> None:
        super().__init__(f"the command at index {index} cannot be applied: {type(error).__name__}: {error}")
        self.index = index


class SnapshotInstalled(ConsensusError):
    """No failure: the replica's store has other contents now, so construct a new one from it."""

    code = "snapshot_installed"

    def __init__(self, index: int) -> None:
        super().__init__(f"the tables are those of index {index} now; construct a new replica from the store")
        self.index = index


class ReplicaDead(ConsensusError):
    """`step` was called after it had raised. Construct a new replica from the store."""

    code = "replica_dead"

    def __init__(self) -> None:
        super().__init__("this replica has failed; construct a new one from the store")


class ProposalFailed(ConsensusError):
    """Base of what `Group.propose` and `Group.barrier` raise."""


class ProposalTimeout(ProposalFailed):
    """The outcome was not known by the deadline. The command may still be applied later: proposing it again is safe,
    commands are idempotent by the ids in them. Code `no_leader`: no leader was known at the deadline; `timeout`: one
    was known but did not answer in time."""

    def __init__(self, code: str, deadline_s: float) -> None:
        cause = "no leader was known" if code == "no_leader" else "the outcome was not known"
        super().__init__(f"{cause} within {deadline_s:g} s; it is safe to try again")
        self.code = code
        self.deadline_s = deadline_s


class Unavailable(ProposalFailed):
    """Refused before it was proposed; nothing has happened. Codes: `overloaded` (too many proposals in flight: retry
    later), `quarantined` (this replica has diverged: ask another node), `stopped` (this node is
    stopping: ask another one), `replica_stopped` (its replica has failed for good: ask another node), `disk_low` (the
    leader takes no new sessions), `too_large`, `malformed` (the command exceeds its caps: do not retry),
    `newer_command` (a member cannot apply such a command yet: upgrade it)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
