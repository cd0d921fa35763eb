#!/bin/sh
# Written by gobs. Installs the hob, which is this machine's agent, and starts it: early in each
# boot, and nothing twice. There is no secret in here; the hob gets its own from the metadata.
set -eu
root="${GOBS_ROOT:-}"
lib="$root/usr/local/lib/gobs"
units="$root/etc/systemd/system"
umask 022
mkdir -p "$lib" "$units"

cat >"$lib/prepare.new" <<'PREPARE'
#!/bin/sh
# Written by gobs. Runs as root before the hob starts.
set -eu
root="${GOBS_ROOT:-}"
lib="$root/usr/local/lib/gobs"
hob="$root/usr/local/bin/hob"
user='@USER@'
urls='@URLS@'
pin='@PIN@'
sha256='@SHA256@'
v4='@METADATA4@'
v6='@METADATA6@'

say() { echo "gobs: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }
sum() { sha256sum "$1" | cut -d ' ' -f 1; }

# Keeps everybody but root and the hob from the metadata service, which tells what is told once.
limit_metadata() {
    [ -n "$v4$v6" ] || return 0
    uids=0
    [ "$user" = root ] || uids="0 $(id -u "$user")"
    if has nft && limit_with_nft; then return 0; fi
    if limit_with_iptables iptables "$v4" && limit_with_iptables ip6tables "$v6"; then return 0; fi
    say "every program on this machine can ask the metadata service: there is no nft and no" \
        "iptables to keep it from that. Install nftables."
}

limit_with_nft() {
    set="$(echo "$uids" | sed 's/ /, /g')"
    {
        echo "table inet gobs_metadata"
        echo "delete table inet gobs_metadata"
        echo "table inet gobs_metadata {"
        echo "  chain output {"
        echo "    type filter hook output priority 0; policy accept;"
        for it in $v4; do echo "    ip daddr $it meta skuid != { $set } reject"; done
        for it in $v6; do echo "    ip6 daddr $it meta skuid != { $set } reject"; done
        echo "  }"
        echo "}"
    } | nft -f -
}

limit_with_iptables() {
    [ -n "$2" ] || return 0
    has "$1" || return 1
    "$1" -N GOBS_METADATA 2>/dev/null || "$1" -F GOBS_METADATA || return 1
    for it in $uids; do
        "$1" -A GOBS_METADATA -m owner --uid-owner "$it" -j RETURN || return 1
    done
    "$1" -A GOBS_METADATA -j REJECT || return 1
    for it in $2; do
        "$1" -C OUTPUT -d "$it" -j GOBS_METADATA 2>/dev/null ||
            "$1" -I OUTPUT -d "$it" -j GOBS_METADATA || return 1
    done
}

fetch() {
    if has curl; then
        set -- --fail --silent --show-error --location --connect-timeout 10 --max-time 600 \
            --output "$2" "$1"
        # What is pinned is the boss's key; its certificate is signed by nobody else.
        [ -z "$pin" ] || set -- --insecure --pinnedpubkey "$pin" --noproxy '*' "$@"
        curl "$@"
    elif has wget; then
        set -- --quiet --timeout=60 --tries=1 --output-document="$2" "$1"
        [ -z "$pin" ] || set -- --no-check-certificate --pinnedpubkey="$pin" --no-proxy "$@"
        wget "$@"
    else
        say "there is no curl and no wget to fetch the hob with"
        return 1
    fi
}

# Where SELinux is, a file that was moved keeps the label of where it was made, with which the unit
# may not run it.
relabel() {
    has restorecon || return 0
    restorecon "$hob" || say "$hob has not the label of a program; SELinux may keep it from running"
}

# Fetches the hob, and puts it in its place if it is what it must be.
install_hob() {
    if [ -z "$sha256" ]; then
        [ -x "$hob" ] && return 0
        say "the image of this machine has no $hob, and is said to have one"
        return 1
    fi
    [ ! -x "$hob" ] || [ "$(sum "$hob")" != "$sha256" ] || return 0
    # Its name is what it goes by, so that it can be asked before it is in its place.
    rm -rf "$lib/new"
    mkdir -p "$lib/new" "${hob%/*}"
    for url in $urls; do
        if ! fetch "$url" "$lib/new/hob"; then
            say "$url could not be fetched"
            continue
        fi
        found="$(sum "$lib/new/hob")"
        if [ "$found" != "$sha256" ]; then
            say "$url is not the hob that was announced: its SHA-256 is $found, not $sha256." \
                "It is not run"
            continue
        fi
        chmod 755 "$lib/new/hob"
        if ! "$lib/new/hob" --version >/dev/null; then
            say "the hob from $url does not run on this machine ($(uname -m))"
            continue
        fi
        mv -f "$lib/new/hob" "$hob"
        relabel
        return 0
    done
    return 1
}

limit_metadata
install_hob
PREPARE
chmod 755 "$lib/prepare.new"
mv -f "$lib/prepare.new" "$lib/prepare"

cat >"$units/gobs-hob.service.new" <<'UNIT'
[Unit]
Description=The hob, which is this machine's agent (gobs)
After=network.target nftables.service
StartLimitIntervalSec=0

[Service]
Type=notify
@IDENTITY@
StateDirectory=gobs
StateDirectoryMode=0700
RuntimeDirectory=gobs
RuntimeDirectoryPreserve=yes
ExecStartPre=+/usr/local/lib/gobs/prepare
ExecStart=/usr/local/bin/hob --dir /var/lib/gobs@METADATA@
TimeoutStartSec=15min
Restart=always
RestartSec=5s
KillMode=process
LimitCORE=0

[Install]
WantedBy=multi-user.target
UNIT
mv -f "$units/gobs-hob.service.new" "$units/gobs-hob.service"

# The user that the hob runs as. The unit cannot make it: systemd looks it up before each of its
# commands, those that run as root too.
if [ '@USER@' != root ] && ! id -u '@USER@' >/dev/null 2>&1; then
    useradd --system --home-dir /var/lib/gobs --shell /usr/sbin/nologin '@USER@'
fi

if command -v systemctl >/dev/null 2>&1; then
    systemctl daemon-reload
    systemctl enable --quiet gobs-hob.service
    # Not waited for: this is early in the boot, and the hob tries until it is there.
    systemctl start --no-block gobs-hob.service
else
    echo "gobs: there is no systemd to start the hob: start what is in" \
        "$units/gobs-hob.service by other means" >&2
    exit 1
fi
