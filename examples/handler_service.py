"""A handler in Python: answers `call` tasks of the handler `charge` as a NATS service. Needs nats-py, nothing of Shoal.

    pip install nats-py
    python examples/handler_service.py nats://127.0.0.1:4222
    nats pub 'shoal.tasks.default.{{ID}}' '{"workload": {"kind": "call", "handler": "charge", "payload": {"order": 42}}}'

The worker asks `shoal.handlers.charge`, and keeps lease, time limit, retries and record. Start as many of these as you
like, anywhere: NATS hands each request to one of them (queue group `q`), `nats micro ls` shows them all. One that dies
with a request in hand is noticed when the task's `timeout` is over; the next attempt goes to another.
"""

import asyncio
import json
import signal
import sys

import nats
from nats.micro import add_service
from nats.micro.request import ServiceError


async def charge(request):
    """What is answered is the task's result. An error with a code of 4xx is final, any other is tried again."""
    payload = json.loads(request.data)
    if not isinstance(payload, dict) or "order" not in payload:
        raise ServiceError("400", "payload has no `order`")
    order, attempt = payload["order"], int(request.headers["Shoal-Task-Attempt"])
    print(f"charging order={order} attempt={attempt}", flush=True)
    # A task may be handed out twice, by a lost worker for one: its id is what makes the second charge none.
    key = f"{request.headers['Shoal-Task-Queue']}.{request.headers['Shoal-Task-Id']}"
    if attempt <= payload.get("bank_is_busy_for", 0):
        raise ServiceError("503", "the bank is busy")
    await asyncio.sleep(payload.get("seconds", 0))
    await request.respond(json.dumps({"charged": order, "receipt": key}).encode())


async def main(url):
    client = await nats.connect(url, name="charge", max_reconnect_attempts=-1)
    service = await add_service(client, name="charge", version="1.0.0", description="Charges orders")
    # nats-py hands one endpoint its requests one after the other; start more programs to answer more at once.
    await service.add_endpoint(name="charge", subject="shoal.handlers.charge", handler=charge)
    await client.flush()
    print("ready", flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    # Takes nothing new, answers what it has.
    await client.drain()


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"))
