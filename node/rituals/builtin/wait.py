"""Waits: for trying out leases, cancellation and parallel branches without using a processor."""

import asyncio

from node.rituals import Context, Knowledge, Parameter, ritual

SECONDS_MAX = 86_400.0


@ritual(
    version="1",
    timeout_s=3600.0,
    parameters=[
        Parameter("seconds", "float", "how long to wait", default=1.0, minimum=0.0, maximum=SECONDS_MAX),
        Parameter("step_s", "float", "how often to report progress", default=0.25, minimum=0.05, maximum=60.0),
    ],
)
async def wait(context: Context) -> Knowledge:
    """Waits for the given number of seconds and reports its progress."""
    seconds = float(context.parameters["seconds"])
    step_s = float(context.parameters["step_s"])
    loop = asyncio.get_running_loop()
    started = loop.time()
    end = started + seconds
    while (left := end - loop.time()) > 0:
        context.progress(1.0 - left / seconds)
        await asyncio.sleep(min(left, step_s))
    return Knowledge(summary=f"waited {seconds:g} s", result={"seconds": seconds})
