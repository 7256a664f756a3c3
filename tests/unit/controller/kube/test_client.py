"""What the client refuses to send."""

import pytest
from kubernetes.aio.client import Configuration

from bigmodel.controller.decision import POD
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client


async def test_a_process_whose_lease_may_have_run_out_sends_no_write_and_may_still_read() -> None:
    """C24: whichever task is the first to run when a paused process wakes up."""
    asked: list[str] = []
    nobody = Configuration(host="http://127.0.0.1:1")
    client = Client(nobody, lambda verb, code: asked.append(verb), may_write=lambda: False)
    pod = {"metadata": {"namespace": "ml", "name": "mlp-0"}}
    for write in (
        client.create(POD, pod),
        client.apply(POD, pod),
        client.replace(POD, pod),
        client.merge_patch(POD, "ml", "mlp-0", {}),
        client.delete(POD, "ml", "mlp-0", "uid"),
    ):
        with pytest.raises(errors.NotLeading):
            await write
    with pytest.raises(errors.Unavailable):
        await client.get(POD, "ml", "mlp-0")
    assert asked == ["get"]
    await client.close()
