"""The other files of the template: its specification, the body that launches it, and the schedule that sends that."""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

from beam_prep.cost import MACHINE_VCPUS
from templates.metadata import NAME, metadata

LAUNCH_URI = "https://dataflow.googleapis.com/v1b3/projects/{project}/locations/{region}/flexTemplates:launch"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class Site(NamedTuple):
    """Where and how it runs. The defaults of the first three are for the files that are kept in this folder."""

    project: str = "PROJECT"
    region: str = "REGION"
    bucket: str = "BUCKET"
    version: str = "VERSION"
    """Tag of the image."""
    repository: str = NAME
    """Of Artifact Registry."""
    job_name: str = f"{NAME}-nightly"
    """Dataflow runs one job of a name at a time, so that it keeps two launches from writing into one output."""
    config: str = ""
    """By default configs/corpus.yaml in the bucket."""
    output: str = ""
    """By default a folder of the bucket for each day."""
    machine_type: str = f"n2-standard-{MACHINE_VCPUS}"
    max_workers: int = 20
    flexrs: bool = True
    schedule: str = "0 2 * * *"
    time_zone: str = "Etc/UTC"
    parameters: tuple[tuple[str, str], ...] = ()
    """More parameters of the template: names and values."""

    @property
    def image(self) -> str:
        """The image of launcher and workers."""
        return f"{self.region}-docker.pkg.dev/{self.project}/{self.repository}/{NAME}:{self.version}"

    @property
    def template(self) -> str:
        """Where the specification lies."""
        return f"gs://{self.bucket}/templates/{NAME}.json"

    def account(self, role: str) -> str:
        """The service account of the workers (`worker`) or of the schedule (`scheduler`)."""
        return f"{NAME}-{role}@{self.project}.iam.gserviceaccount.com"


def specification(site: Site) -> dict[str, Any]:
    """What `gcloud dataflow flex-template build` writes: a `ContainerSpec`."""
    return {"image": site.image, "metadata": metadata(), "sdkInfo": {"language": "PYTHON"}}


def launch(site: Site) -> dict[str, Any]:
    """Body of a POST to `LAUNCH_URI`: a `LaunchFlexTemplateRequest`."""
    environment: dict[str, Any] = {
        "tempLocation": f"gs://{site.bucket}/tmp",
        "stagingLocation": f"gs://{site.bucket}/staging",
        "serviceAccountEmail": site.account("worker"),
        "sdkContainerImage": site.image,
        "machineType": site.machine_type,
        "maxWorkers": site.max_workers,
    }
    if site.flexrs:
        environment["flexrsGoal"] = "FLEXRS_COST_OPTIMIZED"
    return {
        "launchParameter": {
            "jobName": site.job_name,
            "containerSpecGcsPath": site.template,
            "parameters": {
                "config": site.config or f"gs://{site.bucket}/configs/corpus.yaml",
                "output": site.output or f"gs://{site.bucket}/corpus/{{date}}",
                **dict(site.parameters),
            },
            "environment": environment,
        }
    }


def scheduler(site: Site) -> dict[str, Any]:
    """A job of Cloud Scheduler, as its REST interface takes it, that sends the launch."""
    body = json.dumps(launch(site)).encode()
    return {
        "name": f"projects/{site.project}/locations/{site.region}/jobs/{site.job_name}",
        "description": f"Launches {site.job_name} from {site.template}.",
        "schedule": site.schedule,
        "timeZone": site.time_zone,
        "attemptDeadline": "180s",
        "retryConfig": {
            "retryCount": 3,
            "minBackoffDuration": "60s",
            "maxBackoffDuration": "600s",
            "maxDoublings": 5,
        },
        "httpTarget": {
            "uri": LAUNCH_URI.format(project=site.project, region=site.region),
            "httpMethod": "POST",
            "headers": {"Content-Type": "application/json"},
            "body": base64.b64encode(body).decode(),
            "oauthToken": {"serviceAccountEmail": site.account("scheduler"), "scope": SCOPE},
        },
    }
