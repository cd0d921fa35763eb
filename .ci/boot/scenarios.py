"""What must hold of machines that boot as real ones do; .ci/boot/run starts it in its world."""

import base64
import hashlib
import json
import os
import random
import re
import shutil
import string
import subprocess
import sys
import time
import urllib.request

PROGRAMS, WORK, GATEWAY = os.environ["PROGRAMS"], os.environ["WORK"], os.environ["BOOT_GATEWAY"]
HERE = os.path.dirname(os.path.abspath(__file__))
SERVICE = "http://169.254.169.254/v1"

# How long a condition may take: boots of machines on a small and busy host are among them.
PATIENCE_S = 120
APPLY_S = 180

# How much faster the double's clock runs: tokens of its metadata service, which live for a minute,
# must outlive what a busy host needs for two requests.
SCALE = "30"

# Letters that make a message as long as Linode takes one.
LETTERS = 10_900


def until(what, condition, seconds=PATIENCE_S):
    """Waits for something, and returns it."""
    end = time.monotonic() + seconds
    while True:
        seen = condition()
        if seen:
            return seen
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.2)


def ask(url, method="GET", body=None, **headers):
    """Asks the double."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    request.method = method
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


class Account:
    """A double with a project of its own."""

    def __init__(self, name, text):
        self.directory = os.path.join(WORK, name)
        self.disks = os.path.join(self.directory, "disks")
        os.makedirs(self.disks)
        self.project = os.path.join(self.directory, "project")
        os.makedirs(self.project)
        self.write(text)
        guest = ["--guest", f"exec {HERE}/guest", "--guest-dir", self.disks]
        program = os.path.join(PROGRAMS, "gobs-linode-double")
        command = [program, "--seed", "7", "--scale", SCALE, *guest]
        self.double = subprocess.Popen(command, stdout=subprocess.PIPE)
        told = json.loads(self.double.stdout.readline())
        self.url, self.admin = told["url"], told["admin_url"]

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            for label in self.machines():
                print(f"--- console of {label}")
                sys.stdout.flush()
                guest = Guest(self, label)
                subprocess.run(["tail", "-n", "30", f"{guest.disk}/console.log"], check=False)
                journal = "journalctl --no-pager -u gobs-hob -u shop -u orders | tail -n 60"
                guest.init() and guest.run(journal, check=False, show=True)
        self.double.kill()
        self.double.wait()

    def write(self, text):
        with open(os.path.join(self.project, "main.gobs.hcl"), "w") as file:
            file.write(text)

    def gobs(self, *arguments, fails=False):
        environment = {
            **os.environ,
            "LINODE_URL": self.url,
            "LINODE_TOKEN": "double",
            "GOBS_LINODE_CLOCK_SCALE": SCALE,
            "GOBS_BOSS_LISTEN": "0.0.0.0:7462",
            "GOBS_BOSS_ADVERTISE": f"{GATEWAY}:7462",
        }
        command = [os.path.join(PROGRAMS, "gobs"), *arguments]
        how = {"text": True, "capture_output": True, "check": False, "timeout": APPLY_S}
        done = subprocess.run(command, cwd=self.project, env=environment, **how)
        if fails is not None and (done.returncode not in (0, 2)) != fails:
            raise AssertionError(f"{' '.join(arguments)}:\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def apply(self, **how):
        return self.gobs("apply", "--auto-approve", **how)

    def instances(self):
        return json.loads(ask(self.admin + "/instances"))

    def machines(self):
        return [it["instance"]["label"] for it in self.instances()]

    def guest(self, name):
        """Returns the machine of that name in the project."""
        labels = [it for it in self.machines() if it.startswith(f"gobs-{name}-")]
        assert len(labels) == 1, labels
        return Guest(self, labels[0])

    def fault(self, method, path, kind, times=1, skip=0):
        rule = {"method": method, "path": path, "kind": kind, "times": times, "skip": skip}
        ask(self.admin + "/faults", "POST", rule)


class Guest:
    """A machine, from its inside."""

    def __init__(self, account, label):
        self.account, self.label = account, label
        here = [it for it in account.instances() if it["instance"]["label"] == label]
        self.id = here[0]["instance"]["id"]
        self.metadata_url = here[0]["metadata_url"]
        self.disk = os.path.join(account.disks, str(self.id))

    def init(self):
        """Returns the first process of the machine."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                is_nspawn = words[0].endswith(b"systemd-nspawn")
                if is_nspawn and f"--machine=m{self.id}".encode() in words:
                    with open(f"/proc/{pid}/task/{pid}/children") as file:
                        return next(iter(file.read().split()), None)
            except OSError:
                pass  # it has ended meanwhile
        return None

    def run(self, script, check=True, show=False):
        """Runs a script as root on the machine, and returns what it prints."""
        pid = until(f"{self.label} runs", self.init)
        command = ["nsenter", "-t", pid, "--all", "--", "sh", "-s"]
        out = None if show else subprocess.PIPE
        done = subprocess.run(command, input=script, stdout=out, stderr=out, text=True, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{self.label}: {script}\n{done.stdout}\n{done.stderr}")
        return (done.stdout or "").strip()

    def holds(self, script):
        pid = self.init()
        command = ["nsenter", "-t", str(pid), "--all", "--", "sh", "-s"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        return pid and done.returncode == 0

    def user_data(self):
        """Returns what the machine was given, as cloud-init and the hob get it."""
        token = ask(self.metadata_url + "/token", "PUT", Metadata_Token_Expiry_Seconds="60")
        text = ask(self.metadata_url + "/user-data", Metadata_Token=token)
        return base64.b64decode(text).decode()

    def secrets(self):
        """Returns what nobody may find: the document of the hob, and its one-time part."""
        sealed = re.search("^X-Gobs-Hob: (.*)$", self.user_data(), re.M)[1]
        document = json.loads(base64.b64decode(sealed))
        return sealed, re.search("/s/([^?]+)", document["sturdyref"])[1]

    def settle(self):
        """Waits until cloud-init has done all that it does at a boot."""
        done = "systemctl is-active -q cloud-init.target && [ -e /run/cloud-init/result.json ]"
        until(f"{self.label} has booted", lambda: self.holds(done))

    def boots(self):
        return self.run("cat /proc/sys/kernel/random/boot_id")

    def reboot(self):
        before = self.init()
        url = f"{self.account.url}/linode/instances/{self.id}/reboot"
        ask(url, "POST", {}, Authorization="Bearer double")
        until(f"{self.label} boots again", lambda: self.init() not in (None, before))


def machine(name, lines, user="gobs", own=None, hob=""):
    indented = "".join(f"    {line}\n" for line in (own or "").splitlines())
    own = f"  user_data = <<-EOT\n{indented}  EOT\n" if own else ""
    return f"""
machine "{name}" {{
  provider        = linode
  region          = "eu-central"
  type            = "g6-nanode-1"
  authorized_keys = ["ssh-ed25519 AAAA test"]
  hob {{
    listen    = "[::]:7463"
    advertise = ["ipv4"]
    user      = "{user}"
    {hob}
  }}
{own}{lines}
}}
"""


def same(found, expected):
    assert found == expected, f"{found!r}, and not {expected!r}"


def says(told, *expected):
    for it in expected:
        assert it in told, f"{it!r} is not in:\n{told}"


# The program on db comes from a cloud-config, and the one on app from a script, late.
DB = """#cloud-config
write_files:
  - path: /etc/systemd/system/orders.service
    content: |
      [Service]
      WorkingDirectory=/srv
      ExecStart=python3 -m http.server --bind 127.0.0.1 5432
      [Install]
      WantedBy=multi-user.target
runcmd:
  - echo first orders >/srv/index.html
  - systemctl enable --now --no-block orders.service
"""
APP = """#!/bin/sh
sleep 3
cat >/etc/systemd/system/shop.service <<'UNIT'
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'env >/root/environment; curl -sS http://127.0.0.1:$ORDERS/ >/root/answer'
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable shop.service
"""


def pair(image="linode/debian13", own=APP, hob=""):
    image = f'  image = "{image}"\n'
    return (
        machine("db", image + '  service "orders" { tcp = "127.0.0.1:5432" }', own=DB, hob=hob)
        + machine("app", image, user="root", own=own, hob=hob)
        + """
binding "orders" {
  from = machine.db.service.orders
  to   = machine.app
  expose {
    tcp  = "127.0.0.1:5432"
    unit = "shop.service"
    env  = { ORDERS = "port" }
  }
}
"""
    )


def check_machine(guest, user):
    """Checks what must hold of every machine that has claimed its place."""
    guest.settle()
    # It runs, as the user it is to run as, and its unit has no fault that systemd knows.
    until("the hob runs", lambda: guest.holds("systemctl is-active -q gobs-hob"))
    same(guest.run("ps -o user= -p $(systemctl show --value -p MainPID gobs-hob)"), user)
    same(guest.run("systemd-analyze verify gobs-hob.service 2>&1"), "")
    # An old cloud-init fails where an image has neither SSH nor locales, as ours has not.
    failed = "systemctl list-units --failed --plain --no-legend | grep -v ^cloud-config || true"
    same(guest.run(failed), "")

    # Only root and the hob reach the metadata service.
    token = f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' -X PUT {SERVICE}/token"
    token += " -H 'Metadata-Token-Expiry-Seconds: 60'"
    other = f"setpriv --reuid 65534 --clear-groups {token} || true"
    same(guest.run(token), "200")
    same(guest.run(f"setpriv --reuid {user} --clear-groups {token}"), "200")
    same(guest.run(other), "000")

    # What was secret is nowhere: on no disk, in no argument, environment or journal.
    for secret in guest.secrets():
        # The search is told on its standard input, since its own arguments are searched too.
        pattern = f"cat >/dev/shm/secret <<'END'\n{secret}\nEND\n"
        where = "/dev /etc /home /opt /root /run /srv /tmp /usr /var"
        # The seed is what .ci/boot/guest writes for a cloud-init that knows no Linode.
        files = "grep -rlaF -f /dev/shm/secret --exclude=secret --exclude-dir=seed -D skip"
        files += f" {where} 2>/dev/null || true"
        same(guest.run(pattern + files), "")
        said = "journalctl --no-pager -o export -a | grep -caF -f /dev/shm/secret || true"
        same(guest.run(pattern + said), "0")
        arguments = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' |"
        arguments += " grep -caF -f /dev/shm/secret || true"
        same(guest.run(pattern + arguments), "0")
        guest.run("rm /dev/shm/secret")


def first():
    """Two machines boot, one program uses the other's through a binding, and both boot again."""
    with Account("first", pair()) as account:
        says(account.apply(), "Apply complete! Resources: 2 added", "Bindings: 1 granted.")
        db, app = account.guest("db"), account.guest("app")
        check_machine(db, "gobs")
        check_machine(app, "root")
        until("the program has its binding", lambda: app.holds("grep -q . /root/answer"))
        assert app.run("cat /root/answer") == "first orders"
        says(app.run("cat /root/environment"), "ORDERS=5432", "SERVICE_BINDING_ROOT=/run/gobs/")
        says(account.gobs("plan"), "No changes.")

        # gobs does not run, and both machines boot again: the binding comes back by itself.
        keys = [it.run("cat /var/lib/gobs/hob/key | base64") for it in (db, app)]
        # On one of them cloud-init has forgotten what it knew, and asks anew.
        db.run("rm /var/lib/cloud/instance/obj.pkl")
        db.reboot()
        check_machine(db, "gobs")
        app.run("rm /root/answer")
        app.reboot()
        check_machine(app, "root")
        assert keys == [it.run("cat /var/lib/gobs/hob/key | base64") for it in (db, app)]
        until("the program has its binding again", lambda: app.holds("grep -q . /root/answer"))
        says(account.gobs("plan"), "No changes.")
        says(account.gobs("destroy", "--auto-approve"), "2 destroyed")
        assert account.machines() == []


def late():
    """The metadata service fails at first, and is away when the hob asks; user data is large."""
    # Nothing makes random letters shorter: the message is near what Linode takes, in spite of gzip.
    letters = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=LETTERS))
    own = "#!/bin/sh\necho ran >/root/own\n" + "".join(
        f": {letters[at : at + 76]}\n" for at in range(0, LETTERS, 76)
    )
    text = machine("db", '  image = "linode/debian13"', own=own)
    with Account("late", text) as account:
        # What boots the machine asks first, and is answered. cloud-init asks up to five times. Then
        # the hob is what asks, and is put off.
        for skip, times, kind in [
            (1, 2, {"fault": "before", "status": 500}),
            (1, 4, {"fault": "before", "status": 503}),
        ]:
            account.fault("PUT", "/v1/token", kind, times=times, skip=skip)
        account.fault("GET", "/v1/user-data", {"fault": "empty"}, skip=1)
        says(account.apply(), "Apply complete! Resources: 1 added")
        db = account.guest("db")
        size = len(db.user_data())
        assert 15_000 < size <= 16_384, size
        says(db.user_data(), "application/gzip")
        check_machine(db, "gobs")
        same(db.run("cat /root/own"), "ran")
        said = db.run("journalctl --no-pager -o cat -u gobs-hob")
        says(said, "status 503", "it has no user data for this machine")
        account.gobs("destroy", "--auto-approve")


def elsewhere():
    """The hob comes from another place; a machine that never calls is found and rebuilt."""
    site = os.path.join(WORK, "site")
    os.makedirs(site)
    program = os.path.join(site, "hob")
    shutil.copy(os.path.join(PROGRAMS, "hob"), program)
    with open(program, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "-d", site, "-b", GATEWAY, "8000"],
        stderr=subprocess.DEVNULL,
    )
    image = '  image = "linode/debian13"'
    wrong = f'url = "http://{GATEWAY}:8000/hob"\n    sha256 = "{"0" * 64}"\n    deadline = "20s"'
    right = wrong.replace("0" * 64, digest).replace("20s", "5m")
    with Account("elsewhere", machine("db", image, hob=wrong)) as account:
        # What is there is not what was announced, so the hob is never run, and nobody calls.
        says(account.apply(fails=True), "did not call home in time")
        db = account.guest("db")
        said = "journalctl --no-pager -o cat -u gobs-hob | grep -q 'It is not run'"
        until("what is not the hob is refused", lambda: db.holds(said))
        same(db.run("test -e /usr/local/bin/hob && echo there || true"), "")
        says(account.gobs("status", fails=None), "unclaimed")
        before = db.secrets()

        account.write(machine("db", image, hob=right))
        says(account.gobs("plan"), "because its hob never called home")
        says(account.apply(), "Apply complete!")
        same(account.guest("db").id, db.id)
        assert account.guest("db").secrets()[1] != before[1]
        check_machine(account.guest("db"), "gobs")
        says(account.gobs("plan"), "No changes.")
        account.gobs("destroy", "--auto-approve")
    server.kill()
    server.wait()


# Units that count how often they start, and note what they are given.
UNITS = """#!/bin/sh
for unit in shop app@; do
    cat >/etc/systemd/system/$unit.service <<'UNIT'
[Service]
ExecStart=sh -c 'echo >>/root/starts-%p-%i; env -0 >/root/env-%p-%i; exec sleep infinity'
UNIT
done
printf '[Service]\\nExecStart=false\\n' >/etc/systemd/system/fails.service
printf '[Service]\\nExecStart=true\\n' >/etc/systemd/system/masked.service
systemctl daemon-reload
ln -s /dev/null /run/systemd/system/masked.service
mv /etc/systemd/system/masked.service /root
systemctl daemon-reload
"""

# What a shell or systemd could read otherwise; a path may have all of it.
ODD = "/run/odd/ q'u\"o`te\" b\\\\s %h %% $HOME ${HOME} #; é雪 \\"


def given_to(*units, variable="ODD"):
    quoted = json.dumps(ODD, ensure_ascii=False).replace("${", "$${")
    lines = "".join(
        f"""  expose {{
    unix = "${{{quoted}}}{n}"
    unit = "{unit}"
    env  = {{ {variable}_{n} = "path" }}
  }}
"""
        for n, unit in enumerate(units, 1)
    )
    return (
        machine(
            "db",
            '  image = "linode/debian13"\n  service "orders" { tcp = "127.0.0.1:5432" }',
            own=DB,
        )
        + machine("app", '  image = "linode/debian13"', user="root", own=UNITS)
        + f"""
binding "orders" {{
  from = machine.db.service.orders
  to   = machine.app
{lines}}}
"""
    )


def units():
    """Units get a binding's values as they are, are restarted when these change, and lose them."""
    with Account("units", given_to("shop.service", "app@1.service")) as account:
        says(account.apply(), "Apply complete! Resources: 2 added", "Bindings: 1 granted.")
        app = account.guest("app")

        def starts(name, number):
            file = f"/root/starts-{name}"
            until(f"{name} starts", lambda: app.holds(f"[ $(wc -l <{file}) -ge {number} ]"))
            same(app.run(f"wc -l <{file}"), str(number))
            return app.run(f"tr '\\0' '\\n' </root/env-{name}").splitlines()

        for name in ("shop-", "app-1"):
            given = starts(name, 1)
            assert {f"ODD_1={ODD}1", f"ODD_2={ODD}2"} < set(given), given
        for unit in ("shop.service", "app@1.service"):
            same(app.run(f"systemd-analyze verify {unit} 2>&1"), "")
        read = f". /var/lib/gobs/environment/orders.env; printf %s \"$ODD_1\""
        for shell in ("dash", "bash"):
            same(app.run(f"{shell} <<'END'\n{read}\nEND"), ODD + "1")

        # The same values are nothing to a unit, whoever starts again.
        app.run("systemctl restart gobs-hob")
        says(account.apply(), "No changes.")
        account.write(given_to("shop.service", "app@1.service", variable="OTHER"))
        says(account.apply(), "Bindings: 1 updated.")
        assert f"OTHER_1={ODD}1" in starts("shop-", 2)
        starts("app-1", 2)

        # What cannot be restarted is said before anything changes.
        for unit, why in [
            ("none.service", "this machine has no unit none.service"),
            ("masked.service", "masked"),
        ]:
            account.write(given_to(unit))
            says(account.apply(fails=True), why)
        starts("shop-", 2)

        # A unit that fails is told of until it runs.
        account.write(given_to("fails.service"))
        says(account.apply(), "Apply complete!")
        told = lambda: "fails.service: it failed" in account.gobs("status", fails=None)
        until("the unit that fails is told of", told)
        app.run("sed -i s/false/'sleep infinity'/ /etc/systemd/system/fails.service")
        app.run("systemctl daemon-reload; systemctl restart fails.service")
        until("it is told of no more", lambda: not told())
        # Those that it was taken from have nothing of it any more, and were restarted.
        for name in ("shop-", "app-1"):
            assert not any("ODD" in it or "OTHER" in it for it in starts(name, 3))
        left = "find /etc/systemd /run/systemd -name '*gobs.conf'"
        same(app.run(left), "/etc/systemd/system/fails.service.d/50-gobs.conf")

        # One that is removed meanwhile needs nobody.
        app.run("systemctl stop fails; rm /etc/systemd/system/fails.service; systemctl daemon-reload")
        account.write(given_to("shop.service").split('binding "orders"')[0])
        says(account.apply(), "Bindings: 1 revoked.")
        same(app.run(left), "")
        until("nothing is told of", lambda: "fails" not in account.gobs("status", fails=None))
        same(app.run("systemctl --failed --plain --no-legend | grep -v ^cloud || true"), "")
        account.gobs("destroy", "--auto-approve")


SCENARIOS = {it.__name__: it for it in (first, late, elsewhere, units)}


def main():
    passed = 0
    for name in sys.argv[1:] or SCENARIOS:
        begun = time.monotonic()
        SCENARIOS[name]()
        shutil.rmtree(os.path.join(WORK, name), ignore_errors=True)
        print(f"boot: {name}: well, in {time.monotonic() - begun:.0f} s")
        passed += 1
    print(f"{passed} passed, 0 failed")


main()
