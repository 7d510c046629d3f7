"""Events as their watchers see them, over three real nodes."""

from urllib.request import urlopen

from node.testing import LocalMesh


def test_events_go_on_without_gap_or_repeat_on_another_node(mesh: LocalMesh) -> None:
    mesh.start()
    session = mesh.submit(thought="stream", branches=[{"ritual": "echo", "task": "x"}] * 20)
    mesh.wait_session(session["id"])
    names = list(mesh.daemons)

    def numbers(name: str, after: str) -> list[str]:
        """Ids of the events after this one, up to the end of the session, as one node tells them."""
        found: list[str] = []
        number = ""
        with urlopen(f"{mesh[name].url}/v1/events?after={after}", timeout=10) as stream:
            for raw in stream:
                field, _, value = raw.decode().strip().partition(": ")
                if field == "id":
                    number = value
                elif field == "event":
                    found.append(number)
                    if value == "session_completed":
                        break
        return found

    first = numbers(names[0], "0.0")
    assert len(first) == len(set(first)) > 40
    middle = len(first) // 2
    assert numbers(names[1], first[middle]) == first[middle + 1 :]
