"""The gateway's baseline: the same route as FastAPI and Celery lead to it, a thread for each request that waits.

Run with `uvicorn benchmarks.threads:app`.
"""

from typing import Annotated, Any

from celery import Celery
from fastapi import Body, FastAPI, Response

from gateway.openapi import PATH
from worker.settings import load_settings

SETTINGS = load_settings()

celery = Celery(broker=SETTINGS.broker_url, backend=SETTINGS.result_url)
app = FastAPI()


@app.put(PATH)
def update_image(body: Annotated[dict[str, Any], Body()], response: Response) -> dict[str, Any]:
    """Send the request, wait for its result, pass it on."""
    reply = celery.send_task("image.update", kwargs=body, queue="image.update", expires=30).get(timeout=30)
    response.status_code = reply["status"]
    answer: dict[str, Any] = reply.get("image") or reply["error"]
    return answer
