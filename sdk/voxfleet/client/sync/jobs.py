# Generated from voxfleet/client/aio by scripts/generate_sync_client.py: edit that, not this.
"""Long work: ``client.jobs``."""

# ruff: noqa: A002 - the arguments bear the names of the API's fields

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from voxfleet.client.enums import FINAL_STATES
from voxfleet.client.errors import JobCancelled, JobFailed
from voxfleet.client.sync.calls import Calls
from voxfleet.client.sync.watch import Watcher
from voxfleet.v1 import job_pb2, job_pb2_grpc


class JobGroup:
    """Follows jobs and steers them."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = job_pb2_grpc.JobServiceStub(calls.channel)

    def get(self, name: str) -> job_pb2.Job:
        """One job."""
        request = job_pb2.GetJobRequest(name=self._calls.name("jobs", name))
        return self._calls.unary(self._stub.GetJob, request, safe=True)

    def list(
        self, *, filter: str = "", query: str = "", order_by: str = "", page_size: int = 0
    ) -> Iterator[job_pb2.Job]:
        """The team's jobs, newest first, page after page.

        Args:
            filter: such as ``state=RUNNING`` or ``kind=rvc.train``.
            query: words of the display name.
            order_by: ``create_time desc`` or ``create_time``.
            page_size: how many to fetch at a time; the server's default where 0.
        """
        request = job_pb2.ListJobsRequest(
            parent=self._calls.team, filter=filter, query=query, order_by=order_by, page_size=page_size
        )
        yield from self._pages(request)

    def items(self, batch: str, *, filter: str = "", page_size: int = 0) -> Iterator[job_pb2.Job]:
        """The items of a batch, in their order."""
        name = self._calls.name("jobs", batch)
        request = job_pb2.ListJobsRequest(
            parent=name.rpartition("/jobs/")[0], batch_job=name, filter=filter, page_size=page_size
        )
        yield from self._pages(request)

    def _pages(self, request: job_pb2.ListJobsRequest) -> Iterator[job_pb2.Job]:
        for page in self._calls.pages(self._stub.ListJobs, request):
            yield from page.jobs

    def watch(
        self, name: str, *, cursor: int = 0, timeout_s: float | None = None
    ) -> Iterator[job_pb2.WatchJobResponse]:
        """What happens to a job, until it ends; goes on over dropped connections.

        Every change comes once and in order: the stream is opened again at the last cursor, and what came
        already is passed over.

        Args:
            name: of the job.
            cursor: the last cursor seen, to see only what is after it; 0 for all.
            timeout_s: deadline of the whole watch; none where None.

        Raises:
            DeadlineExceeded: the job had not ended in time; it goes on.
            Unavailable: nothing came for as long as the policy goes on trying.
        """
        return Watcher(self._calls, self._calls.name("jobs", name), cursor, timeout_s).messages()

    def wait(
        self,
        name: str,
        *,
        timeout_s: float | None = None,
        on_message: Callable[[job_pb2.WatchJobResponse], None] | None = None,
    ) -> job_pb2.Job:
        """Waits for a job to end, and returns it if it succeeded.

        Args:
            name: of the job.
            timeout_s: how long to wait; for ever where None.
            on_message: told of everything that :meth:`watch` yields.

        Raises:
            JobFailed: it failed; JobCancelled, a kind of it, where it was cancelled.
            DeadlineExceeded: it had not ended in time; it goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        cursor = 0
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            for message in self.watch(name, cursor=cursor, timeout_s=left_s):
                cursor = message.cursor
                if on_message is not None:
                    on_message(message)
            job = self.get(name)
            # A job that was retried the moment it ended is not at its end.
            if job.state in FINAL_STATES:
                return succeeded(job)

    def cancel(self, name: str) -> job_pb2.Job:
        """Asks a job to stop."""
        request = job_pb2.CancelJobRequest(name=self._calls.name("jobs", name))
        return self._calls.unary(self._stub.CancelJob, request, safe=True)

    def pause(self, name: str) -> job_pb2.Job:
        """Holds a job back; running training stops at a checkpoint."""
        request = job_pb2.PauseJobRequest(name=self._calls.name("jobs", name))
        return self._calls.unary(self._stub.PauseJob, request, safe=True)

    def resume(self, name: str) -> job_pb2.Job:
        """Lets a paused job go on."""
        request = job_pb2.ResumeJobRequest(name=self._calls.name("jobs", name))
        return self._calls.unary(self._stub.ResumeJob, request, safe=True)

    def retry(self, name: str) -> job_pb2.Job:
        """Runs a failed or cancelled job again, from its last checkpoint where it has one.

        Never repeated by itself: a job that fails again at once would be run a third time.
        """
        request = job_pb2.RetryJobRequest(name=self._calls.name("jobs", name))
        return self._calls.unary(self._stub.RetryJob, request, safe=False)

    def update(
        self,
        name: str,
        *,
        priority: int | None = None,
        labels: Mapping[str, str] | None = None,
        display_name: str | None = None,
    ) -> job_pb2.Job:
        """Changes what is given, and leaves the rest."""
        request = job_pb2.UpdateJobRequest(
            job=job_pb2.Job(
                name=self._calls.name("jobs", name),
                priority=priority or 0,
                labels=labels or {},
                display_name=display_name or "",
            )
        )
        given = {"priority": priority, "labels": labels, "display_name": display_name}
        request.update_mask.paths.extend(field for field, value in given.items() if value is not None)
        return self._calls.unary(self._stub.UpdateJob, request, safe=True)

    def explain(self, name: str) -> job_pb2.ExplainJobResponse:
        """Why a job waits, for what, and how long."""
        request = job_pb2.ExplainJobRequest(name=self._calls.name("jobs", name))
        return self._calls.unary(self._stub.ExplainJob, request, safe=True)


def succeeded(job: job_pb2.Job) -> job_pb2.Job:
    """The job, if it ended well; raises JobCancelled or JobFailed otherwise."""
    if job.state == job_pb2.JOB_STATE_CANCELLED:
        raise JobCancelled(job)
    if job.state == job_pb2.JOB_STATE_FAILED:
        raise JobFailed(job)
    return job
