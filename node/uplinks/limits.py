"""Every cap of uplinks, with unit and reason."""

from typing import Final

UPLINKS_MAX: Final = 128
"""Leaf nodes of one parent: half of its links. Beyond it a Leaf is sent to another."""

ATTACH_S: Final = 10.0
"""A Leaf's link on which it has not asked to be taken by then is ended: links are few."""

PAYLOAD_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one message: what a frame of a link takes."""

WORKS_PER_MESSAGE_MAX: Final = 256
WORK_BYTES_PER_MESSAGE_MAX: Final = 512 * 1024
"""Assignments pushed at once; at least one goes, and the largest task is far below a frame."""

WORKS_WAITING_MAX: Final = 20_000
"""Assignments waiting for one uplink; the scheduler gives no more than the places of the Leaf. Beyond: shed, and sent
again from the leases when the Leaf attaches anew."""

PUSH_S: Final = 10.0
"""For a Leaf to take what is pushed; after that the uplink is ended, and all is sent again to whoever attaches."""

OUTCOMES_PER_MESSAGE_MAX: Final = 256
OUTCOME_BYTES_PER_MESSAGE_MAX: Final = 1024 * 1024
"""Outcomes in one report; the next one follows when it is answered."""

RECORD_S: Final = 60.0
"""For outcomes to be recorded before the report is answered with a failure, and comes again."""

RECORDING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Outcomes of all Leaf nodes that wait here to be recorded; they keep what is beyond, and report it again."""

ALTERNATIVES_MAX: Final = 16
"""Told to each Leaf, those that bear least first."""

TELL_PERIOD_S: Final = 1.0
"""A Leaf is told of changes of the leader and of alternatives this often at most."""

GONE_MS: Final = 1_500
"""A Leaf without its uplink for so long has died, unless it hangs on another by then: finding one takes less."""

LOOK_S: Final = 0.25
"""How often what has to be said of Leaf nodes that are gone is looked at."""

BALANCE_PERIOD_S: Final = 5.0
"""Between two looks at whether Leaf nodes should go elsewhere; also how long a new Leaf or Edge is left to settle."""

PHRASES_MAX: Final = 1_000
"""In one question about patterns that the mesh has seen."""

HTTP_STREAMS_MAX: Final = 64
"""Requests of one Leaf's clients being answered here at the same time, long-polls and event streams included."""

HTTP_PART_BYTES_MAX: Final = 64 * 1024
"""Of an answer, sent down at once. What a client does not take stays here, and its writer waits."""

HTTP_WAIT_S: Final = 20.0
"""For the next part of an answer, before the Leaf asks again: event streams are silent for 15 s."""

HTTP_IDLE_S: Final = 60.0
"""An answer for which the Leaf does not ask any more is given up."""
