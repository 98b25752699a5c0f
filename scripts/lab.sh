# Hosts on one machine, for scripts/demo.sh and examples/*/run.sh, which source this file.
#
# Each "host" is a process in network, mount, PID and host name namespaces of its own, with its own
# /run, /var/lib and machine-id; the network between them lives in one more. Nothing is done to the
# machine's own network, and when these processes end the kernel takes everything back.
#
#                outside 203.0.113.10                  etcd 192.0.2.5
#                     |                                   |
#   fabric:     203.0.113.1  ── routes ──  192.0.2.1  bridge "lan"
#                                                         |
#                  host1 192.0.2.11    host2 192.0.2.12   |   host3 192.0.2.13
#                    containers          containers           containers       (10.5.x.y)
#
# The script that sources it sets
#   lab      its name: everything of a run is in /run/loden-$lab/<process id>
# and may set
#   shares   (FOLDER:NAME …): folders of this machine that every host has as /mnt/NAME
#   conflist the CNI configuration of its containers
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${LODEN_BIN_DIR:-$here/target/debug}
base=/run/loden-${lab:?}
hosts=(host1 host2 host3)
network=10.5.0.0/16
etcd=http://192.0.2.5:2379
shares=()
conflist=$here/packaging/10-loden.conflist
# Where Debian puts the plugins of others (containernetworking-plugins).
cni_plugins=/usr/lib/cni

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf '%s: %s\n' "$lab" "$*" >&2; exit 1; }

require() { # COMMAND…
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || fail "$tool is missing: run 'make deps'"
    done
    for tool in loden loden-cni; do
        [ -x "$bin/$tool" ] || fail "$bin/$tool is missing: run 'make build'"
    done
    bin=$(cd "$bin" && pwd)
}

# The processes that hold the namespaces are all that we may end: known by process id and the
# kernel's start time, since an id may be given out again.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
alive() { [ -n "${1:-}" ] && [ "$(start_time "$1")" = "$2" ]; }

remove() { # FOLDER
    local name pid started
    while read -r name pid started; do
        if alive "$pid" "$started"; then kill -KILL "$pid" 2>/dev/null || true; fi
    done < <(cat "$1/holders" 2>/dev/null)
    rm -rf "$1"
}

keep() { [ "${KEEP:-}" ] && [ "${KEEP:-0}" != 0 ]; }

# What the arguments of the script ask for; "up" is a function of the script's own.
main() { # [up|down|in WHERE COMMAND…]
    [ "$(id -u)" = 0 ] || exec sudo -E "$0" "$@"
    case ${1:-up} in
    up) up ;;
    down)
        for dir in "$base"/*/; do [ -d "$dir" ] && remove "$dir"; done
        rmdir "$base" 2>/dev/null || true ;;
    in)
        # The one that was set up last.
        # shellcheck disable=SC2012  # names are process ids
        dir=$(ls -td "$base"/*/ 2>/dev/null | head -n 1) || true
        [ -n "$dir" ] || fail "nothing is running: start it with KEEP=1"
        dir=${dir%/}
        shift
        [ $# -ge 2 ] || fail "usage: $0 in WHERE COMMAND… (there are: $(awk '$1 !~ /^launcher/ {print $1}' "$dir/holders" | xargs))"
        export LODEN_ETCD_ENDPOINTS=$etcd
        run_in "$@" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
}

holder() { awk -v name="$1" '$1 == name {print $2}' "$dir/holders"; }

# Runs a command in a host, in a container of it (host1/c1), or in etcd, outside, fabric.
run_in() { # WHERE COMMAND…
    local where=$1 pid; shift
    pid=$(holder "$where")
    if [ -n "$pid" ]; then
        case $where in
        # Nothing of whoever calls leaks into a container.
        */*) set -- env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" ;;
        esac
    else
        # A container that is a network namespace and nothing more.
        pid=$(holder "${where%%/*}")
        [ -n "$pid" ] || fail "there is no ${where%%/*} (there are: $(awk '$1 !~ /^launcher/ {print $1}' "$dir/holders" | xargs))"
        case $where in
        */*) set -- ip netns exec "${where#*/}" "$@" ;;
        esac
    fi
    PATH=/mnt/loden:$PATH nsenter -t "$pid" -m -u -i -n -p -- "$@"
}

# What it prints goes to NAME.log.
background() { # NAME WHERE COMMAND…
    local name=$1; shift
    # shellcheck disable=SC2016  # for the inner shell
    run_in "$1" sh -c 'echo $$ >"/run/$0.pid"; exec "$@"' "$name" "${@:2}" </dev/null >>"$dir/$name.log" 2>&1 &
    disown
}

# Its id is one in the PID namespace of WHERE, so nothing else can be hit.
end() { # NAME WHERE [SIGNAL]: what runs there in the background; waits until it is gone
    # shellcheck disable=SC2016  # for the inner shell
    run_in "$2" sh -c 'pid=$(cat "/run/$0.pid") && kill "-$1" "$pid" && for _ in $(seq 200); do
        kill -0 "$pid" 2>/dev/null || exit 0; sleep 0.1; done; kill -KILL "$pid"' "$1" "${3:-TERM}" ||
        fail "$1 does not run at $2"
}

# Waits until the namespaces of a process are ready, and notes who holds them.
held() { # NAME LAUNCHER LOG DEPTH: DEPTH processes lie between the launcher and the first in the namespaces
    local name=$1 launcher=$2 log=$3 pid=$2 i
    # From now on an interrupted script can end it, and by --kill-child what it started.
    echo "launcher-$name $launcher $(start_time "$launcher")" >>"$dir/holders"
    for _ in {1..200}; do
        if grep -qx ready "$log" || ! kill -0 "$launcher" 2>/dev/null; then break; fi
        sleep 0.05
    done
    # The process that unshare started; it is the first in its namespace and ends all others with it.
    for ((i = 0; i < $4; i++)); do
        pid=$(tr -d ' ' <"/proc/$pid/task/$pid/children" 2>/dev/null || true)
        [ -n "$pid" ] || break
    done
    [ -n "$pid" ] && echo "$name $pid $(start_time "$pid")" >>"$dir/holders"
    grep -qx ready "$log" || fail "cannot make namespaces for $name: $(cat "$log")"
}

hold() { # NAME: namespaces with a process that keeps them
    local name=$1 tree=$dir/tree-$1 launcher share binds=()
    for share in "$bin:loden" "${shares[@]}" "$dir/disk-$name:disk"; do
        mkdir -p "$tree/${share##*:}"
        binds+=("${share%:*}" "$tree/${share##*:}")
    done
    mkdir -p "$dir/disk-$name"
    : >"$dir/$name.log"
    # shellcheck disable=SC2016  # for the inner shell
    setsid unshare --mount --uts --net --pid --fork --kill-child=KILL sh -c '
        set -e
        name=$1 tree=$2
        shift 2
        # /mnt/loden from here on, wherever it was built, and the other shares: what follows covers
        # /run and /var/lib.
        while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done
        mount --rbind "$tree" /mnt
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t tmpfs -o mode=755 tmpfs /run
        mount -t tmpfs -o mode=755 tmpfs /var/lib
        mkdir -p /run/netns /run/lock
        hostname "$name"
        if [ -e /etc/machine-id ]; then
            tr -d - </proc/sys/kernel/random/uuid >/run/machine-id
            mount --bind /run/machine-id /etc/machine-id
        fi
        ip link set lo up
        echo ready
        exec sleep infinity' sh "$name" "$tree" "${binds[@]}" </dev/null >"$dir/$name.log" 2>&1 &
    launcher=$!
    disown
    held "$name" "$launcher" "$dir/$name.log" 1
}

wire() { # NAME ADDRESS GATEWAY: a cable from eth0 of NAME to the fabric
    # Only the network namespace is entered: the fabric's PID namespace does not show the other one.
    nsenter -t "$(holder fabric)" -n \
        ip link add name "to-$1" type veth peer name eth0 netns "$(holder "$1")"
    run_in fabric ip link set "to-$1" up
    run_in "$1" ip address add "$2" dev eth0
    run_in "$1" ip link set eth0 up
    run_in "$1" ip route add default via "$3"
}

await() { # SECONDS COMMAND…: until the command succeeds
    local until=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.1
    done
}

show_logs() {
    local host
    for host in "${hosts[@]}"; do
        printf -- '--- last lines of the daemon on %s\n' "$host" >&2
        tail -n 8 "$dir/daemon-$host.log" >&2 2>/dev/null || true
    done
}

start_etcd() {
    background etcd etcd etcd --name demo --data-dir /var/lib/etcd --listen-client-urls http://0.0.0.0:2379 \
        --advertise-client-urls "$etcd" --listen-peer-urls http://127.0.0.1:2380 \
        --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster demo=http://127.0.0.1:2380
    await 20 run_in etcd env ETCDCTL_API=3 etcdctl --endpoints http://127.0.0.1:2379 endpoint health ||
        fail "etcd does not start: $(tail -n 3 "$dir/etcd.log")"
}

# Underlay, etcd, and a daemon with its subnet on each host. Whatever happens, it is removed at the end.
set_up() {
    local host n i
    dir=$base/$$
    mkdir -p "$dir"
    trap 'trap "" INT TERM; remove "$dir"; rmdir "$base" 2>/dev/null || true' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM

    say 'Setting up'
    echo "  underlay  192.0.2.0/24, one bridge; a router to 203.0.113.0/24"
    for n in fabric etcd outside "${hosts[@]}"; do hold "$n"; done
    run_in fabric ip link add name lan type bridge
    run_in fabric ip address add 192.0.2.1/24 dev lan
    run_in fabric ip link set lan up
    run_in fabric sysctl -q -w net.ipv4.ip_forward=1
    wire etcd 192.0.2.5/24 192.0.2.1
    i=10
    for host in "${hosts[@]}"; do i=$((i + 1)); wire "$host" "192.0.2.$i/24" 192.0.2.1; done
    for n in etcd "${hosts[@]}"; do run_in fabric ip link set "to-$n" master lan; done
    wire outside 203.0.113.10/24 203.0.113.1
    run_in fabric ip address add 203.0.113.1/24 dev to-outside

    echo "  etcd      192.0.2.5"
    run_in etcd mkdir -p /var/lib/etcd
    start_etcd

    export LODEN_ETCD_ENDPOINTS=$etcd
    run_in host1 loden config set "{\"Network\":\"$network\",\"Backend\":{\"Type\":\"vxlan\"}}" >"$dir/config.log" 2>&1 ||
        fail "cannot write the network config: $(cat "$dir/config.log")"
    echo "  network   $network over VXLAN (loden config set)"

    for host in "${hosts[@]}"; do background "daemon-$host" "$host" loden daemon; done
    for host in "${hosts[@]}"; do
        await 30 run_in "$host" test -s /run/loden/subnet.env || { show_logs; fail "$host gets no subnet"; }
    done
}

underlay() { run_in "$1" ip -br -4 address show dev eth0 | awk '{print $3}' | cut -d/ -f1; }

subnet() { # HOST: its lease and MTU
    # shellcheck disable=SC2016  # for the inner shell
    run_in "$1" sh -c '. /run/loden/subnet.env; echo "${FLANNEL_SUBNET%.1/*}.0/${FLANNEL_SUBNET#*/}, MTU $FLANNEL_MTU"'
}

address() { jq -r '.ips[0].address' "$dir/cni-${1/\//-}.json" | cut -d/ -f1; }

# All plugins of $conflist, one after the other, as a runtime calls them.
cni() { # ADD|DEL HOST NAME CNI_ARGS PORT-MAPPINGS
    local command=$1 host=$2 name=$3 result=$dir/cni-$2-$3.json indices i type config out
    indices=$(jq '.plugins | keys | .[]' "$conflist")
    [ "$command" = ADD ] || indices=$(tac <<<"$indices")
    for i in $indices; do
        config=$(jq --argjson i "$i" --argjson ports "$5" --slurpfile before <(cat "$result" 2>/dev/null || true) \
            '{cniVersion, name} + .plugins[$i]
            + (if .plugins[$i].capabilities.portMappings then {runtimeConfig: {portMappings: $ports}} else {} end)
            + (if $before == [] then {} else {prevResult: $before[0]} end)' "$conflist")
        type=$(jq -r .type <<<"$config")
        case $type in
        loden) type=loden-cni ;;
        *) type=$cni_plugins/$type ;;
        esac
        out=$(run_in "$host" env CNI_COMMAND="$command" CNI_CONTAINERID="$lab-$host-$name" \
            CNI_NETNS="/run/netns/$name" CNI_IFNAME=eth0 CNI_PATH="/mnt/loden:$cni_plugins" CNI_ARGS="$4" \
            "$type" <<<"$config") || fail "$type $command failed for $host/$name: $out"
        [ "$command" = DEL ] || printf '%s\n' "$out" >"$result"
    done
    [ "$command" = ADD ] || rm -f "$result"
}

# A container that is a network namespace and nothing more.
container() { # HOST/NAME [CNI_ARGS [PORT-MAPPINGS]]
    run_in "${1%/*}" ip netns add "${1#*/}"
    run_in "${1%/*}" ip netns exec "${1#*/}" ip link set lo up
    cni ADD "${1%/*}" "${1#*/}" "${2:-}" "${3:-[]}"
}

# Namespaces and a root filesystem of its own around a network namespace: this machine's /usr, read-only, an /etc
# with little more than the given resolv.conf, and the volumes.
isolate() { # HOST/NAME NETNS RESOLV-CONF VOLUME…: SOURCE:TARGET, where SOURCE is a path of the host
    local host=${1%/*} name=${1#*/} launcher
    : >"$dir/$host-$name.log"
    # shellcheck disable=SC2016  # for the inner shell
    setsid nsenter -t "$(holder "$host")" -m -u -i -n -p -- nsenter --net="$2" \
        unshare --mount --uts --ipc --pid --fork --kill-child=KILL sh -c '
        set -e
        name=$1 resolv=$2 root=/tmp
        shift 2
        mount -t tmpfs -o mode=755 tmpfs $root
        cd $root
        mkdir -p dev etc proc root run sys tmp usr var/tmp
        chmod 1777 tmp var/tmp
        for folder in bin sbin lib lib32 lib64 libx32; do
            [ ! -L /$folder ] || cp -P /$folder .
        done
        mount --bind /usr usr
        mount -o remount,bind,ro usr
        for device in null zero full random urandom; do
            touch dev/$device
            mount --bind /dev/$device dev/$device
        done
        ln -s /proc/self/fd dev/fd
        cp -a /etc/passwd /etc/group /etc/ld.so.cache /etc/alternatives etc
        for folder in /etc/java*; do [ ! -d "$folder" ] || cp -a "$folder" etc; done
        echo "$name" >etc/hostname
        printf "127.0.0.1 localhost\n" >etc/hosts
        printf "passwd: files\ngroup: files\nhosts: files dns\n" >etc/nsswitch.conf
        printf "%s\n" "$resolv" >etc/resolv.conf
        for volume in "$@"; do
            mkdir -p "${volume%:*}" "$root/${volume##*:}"
            mount --bind "${volume%:*}" "$root/${volume##*:}"
        done
        mount -t proc proc proc
        mount -t sysfs -o ro sysfs sys
        hostname "$name"
        mkdir old
        pivot_root . old
        umount -l /old
        rmdir /old
        echo ready
        exec sleep infinity' sh "$name" "$3" "${@:4}" </dev/null >"$dir/$host-$name.log" 2>&1 &
    launcher=$!
    disown
    # nsenter's child in the host's PID namespace is unshare; its child is the container's first.
    held "$1" "$launcher" "$dir/$host-$name.log" 2
}

# A container as a runtime makes it: the network and the name first, by the CNI plugins, and the
# resolv.conf from what they say. The name is passed as Podman and Kubernetes pass it.
run_container() { # HOST/NAME PORTS VOLUME…: PORTS as "8020 9870:19870", each inside the container[:at the host]
    local name=$1 ports port mapping resolv
    ports='[]'
    for port in $2; do
        mapping=$(jq -n --argjson inside "${port%:*}" --argjson host "${port#*:}" \
            '{hostPort: $host, containerPort: $inside, protocol: "tcp"}')
        ports=$(jq -c --argjson mapping "$mapping" '. + [$mapping]' <<<"$ports")
    done
    container "$name" "IgnoreUnknown=1;K8S_POD_NAME=${name#*/}" "$ports"
    printf '%s\n' "$ports" >"$dir/ports-${name/\//-}.json"
    resolv=$(jq -r '.dns | (.nameservers[]? | "nameserver \(.)"),
        (select(.search) | "search \(.search | join(" "))"),
        (select(.options) | "options \(.options | join(" "))")' "$dir/cni-${name/\//-}.json")
    isolate "$name" "/run/netns/${name#*/}" "$resolv" "${@:3}"
}

remove_container() { # HOST/NAME
    local host=${1%/*} name=${1#*/} pid started
    read -r _ pid started < <(grep "^$1 " "$dir/holders")
    if alive "$pid" "$started"; then kill -KILL "$pid"; fi
    for _ in {1..100}; do
        alive "$pid" "$started" || break
        sleep 0.05
    done
    sed -i "\\|^\\(launcher-\\)\\?$1 |d" "$dir/holders"
    cni DEL "$host" "$name" "IgnoreUnknown=1;K8S_POD_NAME=$name" "$(cat "$dir/ports-$host-$name.json")"
    run_in "$host" ip netns delete "$name"
}
