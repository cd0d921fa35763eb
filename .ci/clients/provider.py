"""The whole lives of machines by gobs, with all that can belong to them, through whatever listens
at URL: provider.py URL ADMIN_URL DOUBLE_URL [KIND]
The documents that are published know no Linode interfaces, and are for the KIND legacy."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request

url, admin, double, *kind = sys.argv[1:]

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

  placement_group    = {group}

  hob {{ enabled = false }}
}}

machine "two" {{
  provider  = linode
  region    = "eu-central"
  type      = "g6-nanode-1"
  image     = "{image}"
  root_pass = "{password}"

  {two}

  firewall {{
    inbound {{
      label = "ssh"
      ports = "{ports}"
      ipv4  = ["0.0.0.0/0"]
      ipv6  = ["::/0"]
    }}
    outbound {{
      protocol = "ICMP"
      action   = "DROP"
      ipv4     = ["192.0.2.0/24"]
    }}
  }}
  dns {{
    domain = "example.net"
    name   = "two"
    ttl    = {ttl}
  }}
  volume "data" {{
    size   = {size}
    tags   = {tags}
    delete = true
  }}

  hob {{ enabled = false }}
}}
"""

OWN_INTERFACES = """
machine "three" {{
  provider             = linode
  region               = "eu-central"
  type                 = "g6-nanode-1"
  image                = "linode/debian13"
  authorized_keys      = ["ssh-ed25519 AAAA test"]
  interface_generation = "linode"
  firewall_id          = {firewall}

  {three}

  user_data = "#!/bin/sh"
  hob {{ enabled = false }}
}}
"""

PUBLIC = 'interface { purpose = "public" }\n'
VLAN = """interface {
    purpose = "vlan"
    label   = "inner"
  }
"""
VPC = """interface {
    purpose   = "vpc"
    subnet_id = 7
    ipv4      = "10.0.0.9"
    nat_1_1   = "any"
    primary   = true
  }
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
    password="correct horse",
    ports="22",
    ttl=300,
    size=10,
    two=PUBLIC,
    three=PUBLIC + VLAN,
)
CHANGES = [
    {},
    dict(label="second", tags='["blue"]', more="true", policy="linode/power_off_on"),
    dict(type="g6-standard-1"),
    dict(region="us-ord", there=True),
    dict(two=VPC + VLAN, three=VPC, ports="22, 8000-8080", ttl=3600, size=20),
    dict(image="linode/debian12", booted="false"),
    dict(password="battery staple", three=PUBLIC, walled=True),
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


def make(path, **body):
    """Makes something that machines only name, past the proxy's words for it."""
    request = urllib.request.Request(
        double + path,
        json.dumps(body).encode(),
        {"Authorization": "Bearer double", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["id"]


def group(region):
    kind = {"placement_group_type": "anti_affinity:local", "placement_group_policy": "flexible"}
    return make("/placement/groups", label=region, region=region, **kind)


machines = MACHINE if kind == ["legacy"] else MACHINE + OWN_INTERFACES
make("/domains", domain="example.net", type="master", soa_email="double@example.net")
here, there = group("eu-central"), group("us-ord")
rules = {"inbound": [], "inbound_policy": "DROP", "outbound": [], "outbound_policy": "ACCEPT"}
wall = make("/networking/firewalls", label="named", rules=rules)

with tempfile.TemporaryDirectory() as directory:
    wanted = dict(FIRST)
    for change in CHANGES:
        wanted.update(change)
        wanted["group"] = there if wanted.get("there") else here
        wanted["firewall"] = wall if wanted.get("walled") else -1
        with open(os.path.join(directory, "main.gobs.hcl"), "w", encoding="utf-8") as file:
            file.write(machines.format(**wanted))
        gobs(directory, "apply", "--auto-approve")
        gobs(directory, "plan", "--detailed-exitcode")
    gobs(directory, "destroy", "--auto-approve")

with urllib.request.urlopen(f"{admin}/stats", timeout=30) as answer:
    stats = json.load(answer)
count = machines.count("\nmachine ")
if (stats["created"], stats["deleted"]) != (count, count):
    sys.exit(f"made and deleted: {stats}")
