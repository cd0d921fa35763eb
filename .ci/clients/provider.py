"""A machine's whole life by gobs, through whatever listens at URL: provider.py URL ADMIN_URL"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request

url, admin = sys.argv[1:]

MACHINE = """
machine "one" {{
  provider           = linode
  region             = "{region}"
  type               = "{type}"
  image              = "{image}"
  label              = "{label}"
  tags               = {tags}
  authorized_keys    = ["ssh-ed25519 AAAA test"]
  authorized_users   = ["double"]
  private_ip         = {more}
  backups            = {more}
  booted             = {booted}
  swap_size          = 512
  disk_encryption    = "enabled"
  maintenance_policy = "{policy}"

  hob {{ enabled = false }}
}}
"""

FIRST = dict(
    region="eu-central",
    type="g6-nanode-1",
    image="linode/debian13",
    label="first",
    tags='["blue", "green"]',
    more="false",
    booted="true",
    policy="linode/migrate",
)
CHANGES = [
    {},
    dict(label="second", tags='["blue"]', more="true", policy="linode/power_off_on"),
    dict(type="g6-standard-1"),
    dict(region="us-ord"),
    dict(image="linode/debian12", booted="false"),
    dict(booted="true"),
]


def gobs(directory, *arguments):
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": directory,
        "LINODE_TOKEN": "double",
        "LINODE_URL": url,
        "GOBS_LINODE_CLOCK_SCALE": "1000",
    }
    program = os.path.join(os.environ["PROGRAMS"], "gobs")
    run = subprocess.run(
        [program, "-C", directory, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if run.returncode != 0:
        sys.exit(f"gobs {' '.join(arguments)}: {run.returncode}\n{run.stdout}{run.stderr}")
    return run.stdout


with tempfile.TemporaryDirectory() as directory:
    wanted = dict(FIRST)
    for change in CHANGES:
        wanted.update(change)
        with open(os.path.join(directory, "main.gobs.hcl"), "w", encoding="utf-8") as file:
            file.write(MACHINE.format(**wanted))
        gobs(directory, "apply", "--auto-approve")
        gobs(directory, "plan", "--detailed-exitcode")
    gobs(directory, "destroy", "--auto-approve")

with urllib.request.urlopen(f"{admin}/stats", timeout=30) as answer:
    stats = json.load(answer)
if (stats["created"], stats["deleted"]) != (1, 1):
    sys.exit(f"made and deleted: {stats}")
