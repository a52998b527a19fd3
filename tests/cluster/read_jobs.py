"""Reads job files as their schedulers would: SkyPilot's parser; the schemas of JobSet and Job.

Runs by itself, in an environment that has these: `python read_jobs.py skypilot|gke FILE...`. What
is wrong is an error. For SkyPilot, prints what it made of each task.
"""

import contextlib
import json
import os
import sys
from pathlib import Path


def read_gke(path):
    import kubernetes_validate
    import yaml
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    given = yaml.safe_load(Path(path).read_text())
    assert json.loads(JobsetV1alpha2JobSet.from_dict(given).to_json()) == given
    (job,) = (of["template"] for of in given["spec"]["replicatedJobs"])
    name = {"name": given["metadata"]["name"]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": name, **job}
    kubernetes_validate.validate(job, "1.32", strict=True)


def read_skypilot(path):
    import sky
    from sky.server import plugins

    plugins.load_plugins(plugins.ExtensionContext())
    task = sky.Task.from_yaml(path)
    (resources,) = task.resources
    return {
        "name": task.name,
        "nodes": task.num_nodes,
        "accelerators": resources.accelerators,
        "spot": resources.use_spot,
        "recovery": resources.job_recovery,
        "run": task.run,
    }


if __name__ == "__main__":
    os.environ["IS_SKYPILOT_SERVER"] = "1"  # Which knows every field, and refuses others.
    read = {"gke": read_gke, "skypilot": read_skypilot}[sys.argv[1]]
    for path in sys.argv[2:]:
        with contextlib.redirect_stdout(sys.stderr):
            found = read(path)
        print(json.dumps(found))
