#!/bin/bash
# The overlay on one machine: three hosts, two containers each, one real etcd.
#
#   scripts/demo.sh            set up, show, remove            (`make demo`)
#   KEEP=1 scripts/demo.sh     set up, show, leave it running  (`make demo KEEP=1`)
#   scripts/demo.sh in WHERE COMMAND…   run a command in host1, host2/c1, outside, etcd …
#   scripts/demo.sh down       remove every demo that was left running
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
#                    c1   c2             c1   c2               c1   c2        (10.5.x.y)
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
bin=${LODEN_BIN_DIR:-$here/target/debug}
base=/run/loden-demo
hosts=(host1 host2 host3)
containers=(host1/c1 host1/c2 host2/c1 host2/c2 host3/c1 host3/c2)
network=10.5.0.0/16
etcd=http://192.0.2.5:2379

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

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

holder() { awk -v name="$1" '$1 == name {print $2}' "$dir/holders"; }

# Runs a command in a host, in a container of it (host1/c1), or in etcd, outside, fabric.
run_in() { # WHERE COMMAND…
    local where=$1 pid; shift
    pid=$(holder "${where%%/*}")
    [ -n "$pid" ] || fail "there is no ${where%%/*} (there are: $(awk '$1 != "launcher" {print $1}' "$dir/holders" | xargs))"
    case $where in
    */*) set -- ip netns exec "${where#*/}" "$@" ;;
    esac
    PATH=/mnt:$PATH nsenter -t "$pid" -m -u -n -p -- "$@"
}

# What it prints goes to NAME.log.
background() { # NAME WHERE COMMAND…
    local name=$1; shift
    run_in "$@" </dev/null >"$dir/$name.log" 2>&1 &
    disown
}

hold() { # NAME: namespaces with a process that keeps them
    local name=$1 launcher pid
    # shellcheck disable=SC2016  # for the inner shell
    setsid unshare --mount --uts --net --pid --fork --kill-child=KILL sh -c '
        set -e
        # Loden from here on, wherever it was built: what follows covers /run and /var/lib.
        mount --bind "$2" /mnt
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t tmpfs -o mode=755 tmpfs /run
        mount -t tmpfs -o mode=755 tmpfs /var/lib
        mkdir -p /run/netns /run/lock
        hostname "$1"
        if [ -e /etc/machine-id ]; then
            tr -d - </proc/sys/kernel/random/uuid >/run/machine-id
            mount --bind /run/machine-id /etc/machine-id
        fi
        ip link set lo up
        echo ready
        exec sleep infinity' sh "$name" "$bin" </dev/null >"$dir/$name.log" 2>&1 &
    launcher=$!
    # From now on an interrupted demo can end it, and by --kill-child what it started.
    echo "launcher $launcher $(start_time "$launcher")" >>"$dir/holders"
    disown
    for _ in {1..100}; do
        grep -qx ready "$dir/$name.log" && break
        sleep 0.05
    done
    # The process that unshare started; it is the first in its namespace and ends all others with it.
    pid=$(tr -d ' ' <"/proc/$launcher/task/$launcher/children" 2>/dev/null || true)
    [ -n "$pid" ] && echo "$name $pid $(start_time "$pid")" >>"$dir/holders"
    grep -qx ready "$dir/$name.log" || fail "cannot make namespaces for $name: $(cat "$dir/$name.log")"
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

await() { # SECONDS WHAT COMMAND…: until the command succeeds
    local until=$((SECONDS + $1)) what=$2; shift 2
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

address() { cat "$dir/address-${1/\//-}"; }

# One container as a runtime makes it: a network namespace, then the plugin with the shipped
# configuration on its standard input.
container() { # HOST/NAME
    local host=${1%/*} name=${1#*/} result
    run_in "$host" ip netns add "$name"
    run_in "$1" ip link set lo up
    result=$(run_in "$host" env CNI_COMMAND=ADD CNI_CONTAINERID="demo-$host-$name" CNI_NETNS="/run/netns/$name" \
        CNI_IFNAME=eth0 CNI_PATH=/mnt loden-cni <<<"$plugin") || fail "the plugin could not connect $1: $result"
    jq -r '.ips[0].address' <<<"$result" | cut -d/ -f1 >"$dir/address-$host-$name"
}

# What a TCP server in one place sees as the source of a connection from another.
seen_source() { # FROM TO-ADDRESS
    run_in "$1" timeout 5 socat -u "TCP:$2:7000,connect-timeout=3" - 2>/dev/null || echo 'no answer'
}

gigabits() { # FROM TO-ADDRESS
    run_in "$1" iperf3 --client "$2" --connect-timeout 3000 --time 3 --json 2>/dev/null |
        jq -r '.end.sum_received.bits_per_second / 1e9 * 10 | round / 10' 2>/dev/null || echo 'no answer'
}

matrix() { # each container to each other
    local from to cell missing=0
    printf '%-10s' 'from \ to'; printf '%11s' "${containers[@]}"; echo
    for from in "${containers[@]}"; do
        for to in "${containers[@]}"; do
            [ "$from" = "$to" ] && continue
            # The first packet waits for neighbour discovery; the second shows the path.
            { run_in "$from" ping -q -c 2 -i 0.2 -W 2 "$(address "$to")" 2>/dev/null |
                sed -n 's|.* = \([0-9.]*\)/.*|\1 ms|p' >"$dir/ping-${from/\//-}-${to/\//-}"; } &
        done
        wait
    done
    for from in "${containers[@]}"; do
        printf '%-10s' "$from"
        for to in "${containers[@]}"; do
            cell=-
            if [ "$from" != "$to" ]; then
                cell=$(cat "$dir/ping-${from/\//-}-${to/\//-}")
                [ -n "$cell" ] || { cell=LOST; missing=$((missing + 1)); }
            fi
            printf '%11s' "$cell"
        done
        echo
    done
    return $((missing > 0))
}

up() {
    local host tool n i from to row expected seen what vtep1 plugin bad=0

    for tool in ip nsenter unshare setsid etcd etcdctl jq ping iperf3 socat nft; do
        command -v "$tool" >/dev/null || fail "$tool is missing: run 'make deps'"
    done
    for tool in loden loden-cni; do
        [ -x "$bin/$tool" ] || fail "$bin/$tool is missing: run 'make build'"
    done
    bin=$(cd "$bin" && pwd)
    plugin=$(jq '.plugins[0] + {cniVersion, name}' "$here/packaging/10-loden.conflist")
    dir=$base/$$
    mkdir -p "$dir"
    trap 'trap "" INT TERM; remove "$dir"' EXIT
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
    background etcd etcd etcd --name demo --data-dir /var/lib/etcd --listen-client-urls http://0.0.0.0:2379 \
        --advertise-client-urls "$etcd" --listen-peer-urls http://127.0.0.1:2380 \
        --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster demo=http://127.0.0.1:2380
    await 20 etcd run_in etcd env ETCDCTL_API=3 etcdctl --endpoints http://127.0.0.1:2379 endpoint health ||
        fail "etcd does not start: $(tail -n 3 "$dir/etcd.log")"

    export LODEN_ETCD_ENDPOINTS=$etcd
    run_in host1 loden config set "{\"Network\":\"$network\",\"Backend\":{\"Type\":\"vxlan\"}}" >"$dir/config.log" 2>&1 ||
        fail "cannot write the network config: $(cat "$dir/config.log")"
    echo "  network   $network over VXLAN (loden config set)"

    for host in "${hosts[@]}"; do background "daemon-$host" "$host" loden daemon; done
    for host in "${hosts[@]}"; do
        await 30 "$host" run_in "$host" test -s /run/loden/subnet.env || { show_logs; fail "$host gets no subnet"; }
    done
    for n in "${containers[@]}"; do container "$n"; done
    for host in "${hosts[@]}"; do
        # shellcheck disable=SC2016  # for the inner shell
        row=$(run_in "$host" sh -c '. /run/loden/subnet.env; echo "$FLANNEL_SUBNET, MTU $FLANNEL_MTU"')
        echo "  $host     $(run_in "$host" ip -br -4 address show dev eth0 | awk '{print $3}' | cut -d/ -f1)  leases ${row/.1\//.0/};" \
            "c1 $(address "$host/c1"), c2 $(address "$host/c2")"
    done
    for n in "${containers[@]}" outside; do
        # shellcheck disable=SC2016  # for socat's shell
        background "seen-${n/\//-}" "$n" socat TCP-LISTEN:7000,fork,reuseaddr 'SYSTEM:echo $SOCAT_PEERADDR'
    done
    background iperf-c host2/c1 iperf3 --server
    background iperf-h host2 iperf3 --server

    say 'Every container to every other by its plain address (mean round trip)'
    await 10 peers run_in host1/c1 ping -q -c 1 -W 1 "$(address host3/c2)" || true
    matrix || { bad=1; show_logs; }

    say 'TCP throughput, one stream for 3 s'
    echo "  host1/c1 to host2/c1 over the overlay  $(gigabits host1/c1 "$(address host2/c1)") Gbit/s"
    echo "  host1 to host2 without it              $(gigabits host1 192.0.2.12) Gbit/s"

    say 'What is masqueraded: the source address that the receiver sees'
    # Somebody outside who was given host1 as the way to the overlay.
    run_in fabric ip route add "$network" via 192.0.2.11
    # shellcheck disable=SC2016  # for the inner shell
    vtep1=$(run_in host1 sh -c '. /run/loden/subnet.env; echo "${FLANNEL_SUBNET%.*}.0"')
    printf '  %-42s %-16s %s\n' 'connection' 'source seen' ''
    while IFS='|' read -r row from to expected what; do
        seen=$(seen_source "$from" "$to")
        [ "$seen" = "$expected" ] || { bad=1; what="EXPECTED $expected: $what"; }
        printf '  %-42s %-16s %s\n' "$row" "$seen" "$what"
    done <<EOF
host1/c1 to host1/c2|host1/c1|$(address host1/c2)|$(address host1/c1)|kept: same host
host1/c1 to host2/c1|host1/c1|$(address host2/c1)|$(address host1/c1)|kept: inside the overlay
host1/c1 to a server outside|host1/c1|203.0.113.10|192.0.2.11|masqueraded to host1's address
host1 itself to host2/c1|host1|$(address host2/c1)|$vtep1|host1's address in the overlay
outside by host1 to host1/c1|outside|$(address host1/c1)|203.0.113.10|kept: host1's own subnet
outside by host1 to host2/c1|outside|$(address host2/c1)|$vtep1|masqueraded, so that the reply returns by host1
EOF

    if [ "${KEEP:-}" ] && [ "${KEEP:-0}" != 0 ]; then
        trap - EXIT INT TERM
        rm -f "$dir"/ping-*
        say 'Left running. To look around'
        sed 's/^/  /' <<EOF
scripts/demo.sh in host1 loden status
scripts/demo.sh in host1 ip route show proto 177
scripts/demo.sh in host1 nft list table inet loden
scripts/demo.sh in host1/c1 ping $(address host2/c1)
scripts/demo.sh in host2 bash
scripts/demo.sh in etcd env ETCDCTL_API=3 etcdctl get --prefix /coreos.com/network
The daemons' logs: $dir/daemon-host1.log …
To remove it: scripts/demo.sh down
EOF
    else
        say 'Removing it again'
    fi
    return $bad
}

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
    [ -n "$dir" ] || fail "no demo is running: make demo KEEP=1"
    shift
    [ $# -ge 2 ] || fail "usage: scripts/demo.sh in host1|host1/c1|etcd|outside COMMAND…"
    export LODEN_ETCD_ENDPOINTS=$etcd
    run_in "$@" ;;
*) sed -n '3,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
