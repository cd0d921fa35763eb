"""What clients that nobody here wrote see of the double: checks.py URL ADMIN_URL SPEC"""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

url, admin, spec = sys.argv[1:]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTEx test"


def ask(method, address, body=None, headers=None):
    """Asks without a client: status and body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def fault(method, path, kind, **more):
    status, said = ask("POST", f"{admin}/faults", {"method": method, "path": path, "kind": kind, **more})
    assert status == 200, said


def stats():
    return ask("GET", f"{admin}/stats")[1]


def instances():
    return ask("GET", f"{admin}/instances")[1]


def eventually(what, holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def check_linode_api4():
    from linode_api4 import ApiError, Instance, LinodeClient

    client = LinodeClient("double", base_url=url)
    assert client.profile().username == "double"
    assert "eu-central" in [region.id for region in client.regions()]
    assert any(image.id == "linode/debian13" for image in client.images())
    assert [it.id for it in client.linode.types()][0] == "g6-nanode-1"

    created = client.polling.event_poller_create("linode", "linode_create")
    booted = client.polling.event_poller_create("linode", "linode_boot")
    asked = dict(
        image="linode/debian13",
        authorized_keys=[KEY],
        tags=["blue"],
        metadata=client.linode.build_instance_metadata(user_data="#cloud-config\n"),
    )
    machine = client.linode.instance_create("g6-nanode-1", "eu-central", label="api4", **asked)
    for poller in (created, booted):
        poller.set_entity_id(machine.id)
        assert poller.wait_for_next_event_finished(timeout=60, interval=1).status == "finished"
    machine.invalidate()
    assert (machine.status, machine.label, machine.tags) == ("running", "api4", ["blue"])
    assert machine.has_user_data and machine.type.id == "g6-nanode-1" and machine.ipv4

    machine.label, machine.tags = "api4-renamed", ["green", "blue"]
    assert machine.save()
    found = client.linode.instances(Instance.label == "api4-renamed")
    assert [it.id for it in found] == [machine.id]
    for action, begin in (
        ("linode_resize", lambda: machine.resize("g6-standard-1")),
        ("linode_rebuild", lambda: machine.rebuild("linode/debian12", authorized_keys=[KEY])),
        ("linode_reboot", lambda: machine.reboot()),
        ("linode_shutdown", lambda: machine.shutdown()),
    ):
        poller = client.polling.event_poller_create("linode", action, entity_id=machine.id)
        eventually(f"{machine.label} is idle", lambda: is_idle(machine.id))
        assert begin(), action
        assert poller.wait_for_next_event_finished(timeout=60, interval=1).status == "finished"
    machine.invalidate()
    assert (machine.type.id, machine.image.id) == ("g6-standard-1", "linode/debian12")

    try:
        client.linode.instance_create("g6-nanode-1", "eu-central", label="api4-renamed", **asked)
        raise AssertionError("a label twice")
    except ApiError as error:
        assert error.status == 400 and "Label must be unique" in str(error), error
    # What it makes of lost answers is counted by the double, not by it.
    for kind, posts, made in (
        ({"fault": "too_many_requests", "retry_after_s": 1}, 2, True),
        ({"fault": "before", "status": 502, "html": True}, 2, True),
        ({"fault": "reset_after"}, 2, False),
    ):
        before = stats()
        fault("POST", "/linode/instances", kind)
        label = f"lost-{posts}-{kind['fault'].replace('_', '-')}"
        try:
            client.linode.instance_create("g6-nanode-1", "eu-central", label=label, **asked)
            assert made, kind
        except ApiError as error:
            assert not made and "Label must be unique" in str(error), (kind, error)
        after = stats()
        counted = [after[name] - before[name] for name in ("create_requests", "created")]
        assert counted == [posts, 1], (kind, counted)
    for it in client.linode.instances():
        it.delete()
    eventually("all are deleted", lambda: not instances())


def is_idle(machine):
    known = {it["instance"]["id"]: it["instance"]["status"] for it in instances()}
    return known.get(machine) in ("running", "offline")


def cli(*arguments):
    """Runs linode-cli, and returns what it says."""
    host = url.removeprefix("http://").removesuffix("/v4")
    environment = {
        **os.environ,
        "LINODE_CLI_API_HOST": host,
        "LINODE_CLI_API_SCHEME": "http",
        "LINODE_CLI_API_VERSION": "v4",
    }
    command = ["linode-cli", "--suppress-warnings", "--json", *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, (arguments, run.stdout, run.stderr)
    return json.loads(run.stdout) if run.stdout.strip() else None


def check_linode_cli():
    user_data = base64.b64encode(b"#cloud-config\n").decode()
    [machine] = cli(
        *("linodes", "create", "--type", "g6-nanode-1", "--region", "eu-central"),
        *("--image", "linode/debian13", "--label", "cli", "--tags", "blue"),
        *("--authorized_keys", KEY, "--metadata.user_data", user_data),
    )
    number = str(machine["id"])
    eventually("cli runs", lambda: cli("linodes", "view", number)[0]["status"] == "running")
    assert [it["label"] for it in cli("linodes", "list", "--label", "cli")] == ["cli"]
    assert cli("linodes", "update", number, "--tags", "green")[0]["tags"] == ["green"]
    cli("linodes", "reboot", number)
    actions = [event["action"] for event in cli("events", "list")]
    assert "linode_reboot" in actions and "linode_create" in actions, actions
    assert cli("regions", "list") and cli("images", "list") and cli("linodes", "types")
    cli("linodes", "delete", number)
    eventually("cli is deleted", lambda: not instances())


def check_linode_metadata():
    from linode_metadata import MetadataClient
    from linode_metadata.objects.error import ApiError

    text = "#cloud-config\nhostname: meta\n"
    body = {
        "type": "g6-nanode-1",
        "region": "eu-central",
        "label": "meta",
        "image": "linode/debian13",
        "authorized_keys": [KEY],
        "metadata": {"user_data": base64.b64encode(text.encode()).decode()},
    }
    headers = {"Authorization": "Bearer double", "Content-Type": "application/json"}
    status, machine = ask("POST", f"{url}/linode/instances", body, headers)
    assert status == 200, machine
    [base] = [it["metadata_url"] for it in instances()]
    client = MetadataClient(base_url=base)
    assert client.get_user_data() == text
    instance = client.get_instance()
    assert (instance.label, instance.region, instance.id) == ("meta", "eu-central", machine["id"])
    assert client.get_ssh_keys().users["root"] == [KEY]
    assert client.get_network().ipv4.public
    # A service that is still coming up is an error to this client, and comes up all the same.
    fault("GET", "/v1/user-data", {"fault": "before", "status": 503})
    try:
        client.get_user_data()
        raise AssertionError("the service answered while it was down")
    except ApiError:
        assert client.get_user_data() == text
    ask("DELETE", f"{url}/linode/instances/{machine['id']}", None, headers)
    eventually("meta is deleted", lambda: not instances())


def check_filters():
    """The double filters on exactly what the API's document calls filterable."""
    with open(spec, encoding="utf-8") as file:
        paths = json.load(file)["paths"]
    headers = {"Authorization": "Bearer double"}
    wrong = []
    for path, described in paths.items():
        operation = described.get("get")
        if operation is None or "{" in path:
            continue
        address = url.removesuffix("/v4") + path
        status, answer = ask("GET", address, None, headers)
        if status != 200 or "data" not in answer:
            continue  # not part of the double
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        item = schema.get("properties", {}).get("data", {}).get("items", {})
        for name in item.get("properties", {}):
            if "." in name:
                continue
            may = name in operation["x-filterable"]
            status, _ = ask("GET", address, None, {**headers, "X-Filter": json.dumps({name: "x"})})
            if (status == 200) != may:
                wrong.append(f"{path}: {name} is {'' if may else 'not '}filterable")
    assert not wrong, "\n".join(wrong)


for check in (check_linode_api4, check_linode_cli, check_linode_metadata, check_filters):
    started = time.monotonic()
    check()
    name = check.__name__.removeprefix("check_")
    print(f"clients: {name} works ({time.monotonic() - started:.1f} s)", flush=True)
