"""Shows the faults asked for by number; exit code 1 if one of them does not show any more."""

import logging
import sys
import traceback
from collections.abc import Callable
from importlib import metadata

from tests.pysyncobj import elections, membership, replication, storage

FAULTS: dict[int, Callable[[], str]] = {
    1: replication.truncates_what_it_has_acknowledged,
    2: replication.steps_back_one_entry_a_round,
    3: replication.rejects_every_batch_behind_a_rejected_one,
    4: replication.counts_acknowledgements_of_another_term,
    5: elections.one_voter_is_counted_twice,
    6: storage.a_torn_file_loses_the_vote,
    7: storage.a_peer_s_message_executes_code,
    8: replication.an_exception_in_apply_stops_the_replica,
    9: membership.two_changes_are_in_flight,
    10: elections.a_returning_node_unseats_the_leader,
    11: elections.an_isolated_leader_goes_on_believing,
    12: replication.waits_a_tenth_of_a_second_before_it_sends,
    13: replication.forwarding_loses_the_outcome,
    14: replication.a_snapshot_message_commits_the_follower_s_own_log,
    15: storage.a_crash_after_a_dump_loses_acknowledged_entries,
    16: storage.two_transfers_can_be_spliced,
    17: membership.a_restart_forgets_a_change_that_is_in_the_log,
    18: replication.sends_again_what_is_on_its_way,
    19: replication.sends_a_lagging_peer_everything_at_once,
    20: elections.a_leader_that_steps_down_stands_at_once,
}


def main() -> int:
    logging.disable(logging.CRITICAL)
    numbers = [int(word) for word in sys.argv[1:]] or list(FAULTS)
    print(f"pysyncobj {metadata.version('pysyncobj')}")
    result = 0
    for number in numbers:
        try:
            print(f"{number:3}  shown      {FAULTS[number]()}", flush=True)
        except AssertionError:
            result = 1
            print(f"{number:3}  NOT SHOWN  {FAULTS[number].__doc__}", flush=True)
            traceback.print_exc()
    return result


if __name__ == "__main__":
    sys.exit(main())
