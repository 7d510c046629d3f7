"""A deliberately dumb twin of the replicated state: dicts and lists, everything counted by looking at all of it.

It repeats the rules of `consensus.state.commands`, in other words, and shares no code with the state machine but the
types of commands and rows. What it has no opinion on: keys, encodings, digests, caps of sizes.
"""

from typing import Any

from consensus.state.commands import (
    AnyCommand,
    AssignBranches,
    Assignment,
    Canary,
    CancelSession,
    CompleteBranches,
    DrainMember,
    RegisterMember,
    RequeueBranches,
    SetMemberStatus,
    SubmitSession,
)
from consensus.state.rows import Failure
from storage.ids import SessionId

Answer = tuple[str, int, int] | tuple[str, str]
OPEN = ("pending", "processing")


class Twin:
    def __init__(self, *, losses_max: int, open_sessions_max: int, former_max: int) -> None:
        self.losses_max = losses_max
        self.open_sessions_max = open_sessions_max
        self.former_max = former_max
        self.members: dict[str, dict[str, Any]] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.insights: list[dict[str, Any]] = []
        self.patterns: dict[str, int] = {}
        self.canary: tuple[int, str] | None = None
        self.events: list[str] = []
        """Of the last command: kind and place, as text."""

    def apply(self, index: int, command: AnyCommand) -> Answer:
        self.events = []
        self.index = index
        self.at_ms = command.at_ms
        match command:
            case RegisterMember():
                return self.register(command)
            case SetMemberStatus():
                return self.set_status(command)
            case DrainMember():
                return self.drain(command)
            case SubmitSession():
                return self.submit(command)
            case CancelSession():
                return self.cancel(command)
            case AssignBranches():
                first = [self.assign(item) for item in command.assignments]
                return self.batch([*first, *(self.assign_beside(item) for item in command.speculative)])
            case CompleteBranches():
                before = [key for key, session in self.sessions.items() if self.is_ready(session)]
                done = self.batch([self.complete(item) for item in command.outcomes])
                named = dict.fromkeys(item.session_id for item in command.outcomes)
                ready = [key for key in named if key in self.sessions and self.is_ready(self.sessions[key])]
                for key in [key for key in ready if key not in before][:1]:
                    self.take_up(command.offer, key, len(self.sessions[key]["branches"]) - 1)
                return done
            case RequeueBranches():
                return self.batch([self.requeue(item) for item in command.requeues])
            case Canary():
                self.canary = (index, command.node_id)
                return ("applied", 1, 0)

    def batch(self, done: list[bool]) -> Answer:
        self.settle()
        return ("applied", done.count(True), done.count(False))

    # Members

    def register(self, command: RegisterMember) -> Answer:
        offer = (command.name, command.slots, sorted(command.rituals), command.parent, command.ritual_limits)
        known = self.members.get(command.node_id)
        member: dict[str, Any] = {
            "instance": command.instance_id,
            "offer": offer,
            "status": "alive",
            "registered": command.at_ms,
            "former": [],
            "drain": (False, False, None),
            "limits": command.ritual_limits,
        }
        if known is not None:
            member["former"] = known["former"]
            if known["instance"] == command.instance_id:
                if known["status"] == "left" and known["drain"][1]:
                    return ("refused", "has_left")
                if known["status"] != "left":
                    member["drain"] = known["drain"]
                if known["status"] == "alive" and known["offer"] == offer:
                    return ("applied", 0, 0)
                if known["status"] != "alive" and known["registered"] == command.at_ms:
                    return ("applied", 0, 1)
                if command.at_ms < known["registered"]:
                    return ("refused", "stale_registration")
            else:
                if command.instance_id in known["former"]:
                    return ("refused", "stale_instance")
                member["former"] = [*known["former"], known["instance"]]
                while len(member["former"]) > self.former_max:
                    member["former"].pop(0)
        self.members[command.node_id] = member
        self.events.append(f"member_registered {command.node_id}")
        if known is not None and known["instance"] != command.instance_id:
            self.lose_all(command.node_id)
        return ("applied", 1, 0)

    def set_status(self, command: SetMemberStatus) -> Answer:
        member = self.members.get(command.node_id)
        if member is None:
            return ("refused", "unknown_member")
        if member["instance"] != command.instance_id:
            return ("refused", "stale_instance")
        if command.registered_at_ms is not None and command.registered_at_ms != member["registered"]:
            return ("applied", 0, 1)
        if member["status"] == command.status:
            return ("applied", 0, 0)
        if member["status"] == "left":
            return ("applied", 0, 1)
        member["status"] = command.status
        self.events.append(f"member_status_changed {command.node_id}")
        lost = self.lose_all(command.node_id) if command.status in ("dead", "left") else 0
        return ("applied", 1 + lost, 0)

    def drain(self, command: DrainMember) -> Answer:
        member = self.members.get(command.node_id)
        if member is None:
            return ("refused", "unknown_member")
        if member["instance"] != command.instance_id:
            return ("refused", "stale_instance")
        if member["status"] == "left":
            return ("refused", "has_left")
        before = member["drain"]
        member["drain"] = (command.is_draining, command.is_leaving, command.hand_back_at_ms)
        if member["drain"][:2] != before[:2]:
            self.events.append(f"member_draining {command.node_id}")
        return ("applied", int(member["drain"] != before), 0)

    def lose_all(self, node: str) -> int:
        lost = 0
        for _, session in sorted(self.sessions.items()):
            for branch in session["branches"]:
                for number, attempt in self.running(branch):
                    if attempt["node"] == node:
                        self.end(session, branch, number, "gone", is_lost=True)
                        lost += 1
        self.settle()
        return lost

    # Sessions

    def submit(self, command: SubmitSession) -> Answer:
        body = (
            command.thought,
            command.main_session_id,
            command.branches,
            command.consolidation,
            command.priority,
            command.concurrency,
            command.speculation,
            command.ritual_concurrency,
        )
        known = self.sessions.get(command.session_id)
        if known is not None:
            return ("applied", 0, 0) if known["body"] == body else ("refused", "session_exists")
        if sum(session["status"] in OPEN for session in self.sessions.values()) >= self.open_sessions_max:
            return ("refused", "too_many_sessions")
        self.sessions[command.session_id] = {
            "id": command.session_id,
            "body": body,
            "index": self.index,
            "priority": command.priority,
            "status": "pending",
            "failure": None,
            "started": None,
            "ended": None,
            "branches": [
                {
                    "place": place,
                    "ritual": spec.ritual,
                    "attempts_max": spec.attempts_max,
                    "timeout": spec.timeout_ms,
                    "placement": spec.placement,
                    "rests": 0,
                    "status": "pending",
                    "attempt": 0,
                    "node": None,
                    "failures": 0,
                    "losses": 0,
                    "failure": None,
                    "knowledge": None,
                    "duration": None,
                    "deadline": None,
                    "deadlines": {},
                    "is_last": place == len(command.branches),
                    "attempts": [],
                }
                for place, spec in enumerate([*command.branches, command.consolidation])
            ],
        }
        self.events.append(f"session_submitted {command.session_id}")
        if all(place[0] == command.session_id for place in self.queue()):
            self.take_up(command.offer, command.session_id, 0)
        return ("applied", 1, 0)

    def take_up(self, offer: Any, session_id: str, place: int) -> None:
        if offer is not None:
            branch = self.sessions[session_id]["branches"][place]
            member = self.members.get(offer.node_id)
            if branch["placement"] is not None or (member and branch["ritual"] in member["limits"]):
                return
            self.assign(
                Assignment(
                    session_id=SessionId(session_id),
                    branch_index=place,
                    attempt=len(branch["attempts"]) + 1,
                    node_id=offer.node_id,
                    instance_id=offer.instance_id,
                    deadline_ms=self.at_ms + branch["timeout"] + offer.lease_grace_ms,
                )
            )

    def cancel(self, command: CancelSession) -> Answer:
        session = self.sessions.get(command.session_id)
        if session is None:
            return ("refused", "unknown_session")
        if session["status"] not in OPEN:
            return ("applied", 0, 0)
        for branch in session["branches"]:
            for place, (_, attempt) in enumerate(self.running(branch)):
                kind = "attempt_ended" if place else "branch_cancelled"
                attempt.update(status="cancelled", failure="cancelled")
                self.events.append(f"{kind} {session['id']} {branch['place']}")
            if branch["status"] in OPEN:
                branch.update(status="cancelled", deadline=None)
        self.finish(session, "cancelled", "cancelled")
        return ("applied", 1, 0)

    def finish(self, session: dict[str, Any], status: str, failure: str | None) -> None:
        session.update(status=status, failure=failure, ended=self.at_ms)
        self.events.append(f"session_{status} {session['id']}")

    def is_ready(self, session: dict[str, Any]) -> bool:
        parts = session["branches"][:-1]
        return all(part["status"] not in OPEN for part in parts) and any(
            part["status"] == "completed" for part in parts
        )

    def settle(self) -> None:
        for session in self.sessions.values():
            if session["status"] == "processing" and all(b["status"] == "failed" for b in session["branches"][:-1]):
                session["branches"][-1]["status"] = "cancelled"
                self.finish(session, "failed", "all_branches_failed")

    # Branches

    def find(self, session_id: str, place: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        session = self.sessions.get(session_id)
        if session is None or not 0 <= place < len(session["branches"]):
            return None
        return session, session["branches"][place]

    def assign(self, item: Any) -> bool:
        found = self.find(item.session_id, item.branch_index)
        member = self.members.get(item.node_id)
        if found is None or member is None:
            return False
        session, branch = found
        if (
            member["status"] != "alive"
            or member["drain"][0]
            or member["instance"] != item.instance_id
            or branch["ritual"] not in member["offer"][2]
            or branch["status"] != "pending"
            or session["status"] not in OPEN
            or (branch["is_last"] and not self.is_ready(session))
            or item.attempt != len(branch["attempts"]) + 1
            or item.deadline_ms < 0
        ):
            return False
        branch.update(status="processing", attempt=item.attempt, node=item.node_id, deadline=item.deadline_ms)
        self.begin(branch, item)
        session["status"] = "processing"
        if session["started"] is None:
            session["started"] = self.at_ms
        self.events.append(f"branch_assigned {session['id']} {branch['place']}")
        return True

    def begin(self, branch: dict[str, Any], item: Any) -> None:
        attempt = {"node": item.node_id, "status": "processing", "failure": None, "late": False}
        branch["attempts"].append(attempt)
        branch["deadlines"][len(branch["attempts"])] = item.deadline_ms

    def assign_beside(self, item: Any) -> bool:
        """A second attempt while the first is under way, once beside each."""
        found = self.find(item.session_id, item.branch_index)
        member = self.members.get(item.node_id)
        if found is None or member is None or item.deadline_ms < 0:
            return False
        session, branch = found
        running = self.running(branch)
        if (
            len(running) != 1
            or branch["failures"] >= branch["attempts_max"]
            or branch["losses"] >= self.losses_max
            or running[0][0] != len(branch["attempts"])
            or running[0][1]["node"] == item.node_id
            or item.attempt != len(branch["attempts"]) + 1
            or (member["status"], member["drain"][0], member["instance"]) != ("alive", False, item.instance_id)
            or branch["ritual"] not in member["offer"][2]
        ):
            return False
        self.begin(branch, item)
        self.events.append(f"branch_assigned {session['id']} {branch['place']}")
        return True

    def running(self, branch: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        return [(n, a) for n, a in enumerate(branch["attempts"], 1) if a["status"] == "processing"]

    def complete(self, item: Any) -> bool:
        found = self.find(item.session_id, item.branch_index)
        if found is None or (item.knowledge is None) == (item.failure is None):
            return False
        session, branch = found
        if (item.attempt, item.node_id) not in [(number, a["node"]) for number, a in self.running(branch)]:
            if item.knowledge is not None and 1 <= item.attempt <= len(branch["attempts"]):
                attempt = branch["attempts"][item.attempt - 1]
                if attempt["status"] not in ("processing", "completed") and attempt["node"] == item.node_id:
                    attempt["late"] = True
            return False
        if item.failure is not None:
            self.end(session, branch, item.attempt, item.failure.code, is_lost=item.is_lost, duration=item.duration_ms)
            branch["rests"] = item.retry_at_ms
            return True
        branch.update(status="completed", knowledge=item.knowledge, duration=item.duration_ms, deadline=None)
        branch.update(attempt=item.attempt, node=item.node_id)
        for number, attempt in self.running(branch):
            attempt["status"] = "completed" if number == item.attempt else "superseded"
            if number != item.attempt:
                self.events.append(f"attempt_ended {session['id']} {branch['place']}")
        self.events.append(f"branch_completed {session['id']} {branch['place']}")
        for pattern in item.knowledge.patterns:
            words = " ".join(pattern.lower().split())
            self.patterns[words] = self.patterns.get(words, 0) + 1
        if branch["is_last"]:
            parts = [part for part in session["branches"][:-1] if part["status"] == "completed"]
            self.insights.append(
                {
                    "session": session["id"],
                    "patterns": sum(len(part["knowledge"].patterns) for part in parts),
                    "connections": sum(len(part["knowledge"].connections) for part in parts),
                    "used": len(parts),
                    "failed": len(session["branches"]) - 1 - len(parts),
                    "duration": sum(part["duration"] for part in parts),
                }
            )
            self.finish(session, "completed", None)
        return True

    def requeue(self, item: Any) -> bool:
        found = self.find(item.session_id, item.branch_index)
        if found is None or item.attempt not in [number for number, _ in self.running(found[1])]:
            return False
        self.end(found[0], found[1], item.attempt, item.failure.code, is_lost=item.is_lost)
        return True

    def end(
        self,
        session: dict[str, Any],
        branch: dict[str, Any],
        number: int,
        code: str,
        *,
        is_lost: bool,
        duration: int | None = None,
    ) -> None:
        ended = branch["attempts"][number - 1]
        ended.update(status="lost" if is_lost else "failed", failure=code)
        branch["losses" if is_lost else "failures"] += 1
        if others := self.running(branch):
            other, attempt = others[0]
            branch.update(attempt=other, node=attempt["node"], deadline=branch["deadlines"][other])
            self.events.append(f"attempt_ended {session['id']} {branch['place']}")
            return
        branch["deadline"] = None
        branch["rests"] = 0
        if branch["failures"] >= branch["attempts_max"]:
            final = [attempt["failure"] for attempt in branch["attempts"] if attempt["status"] == "failed"][-1]
            final = code if not is_lost else final
        elif is_lost and branch["losses"] >= self.losses_max:
            final = "lost_too_often"
        else:
            branch.update(status="pending", attempt=len(branch["attempts"]))
            self.events.append(f"branch_requeued {session['id']} {branch['place']}")
            return
        branch.update(status="failed", failure=final, duration=duration)
        self.events.append(f"branch_failed {session['id']} {branch['place']}")
        if branch["is_last"]:
            self.finish(session, "failed", "consolidation_failed")

    # What can be seen

    def queue(self) -> list[tuple[str, int, int, str | None, int]]:
        waiting = []
        for session in sorted(self.sessions.values(), key=lambda each: (-each["priority"], each["index"])):
            for branch in session["branches"]:
                if branch["status"] == "pending" and (not branch["is_last"] or self.is_ready(session)):
                    attempt = len(branch["attempts"]) + 1
                    waiting.append((session["id"], branch["place"], attempt, branch["node"], branch["rests"]))
        return waiting

    def leases(self) -> list[tuple[str, int, int, str, int]]:
        held = []
        for session_id, session in sorted(self.sessions.items()):
            for branch in session["branches"]:
                for number, attempt in self.running(branch):
                    held.append((session_id, branch["place"], number, attempt["node"], branch["deadlines"][number]))
        return held


def failure_code(failure: Failure | None) -> str | None:
    return None if failure is None else failure.code
